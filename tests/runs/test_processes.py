"""Processes of one run: who does what, and what makes them one run."""

import pytest

from dvp_jax.runs.processes import ALONE, Process, current, differences, join
from tests.processes import begin, end


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_each_item_is_in_the_part_of_one_process_and_parts_differ_by_one_at_most(count):
    parts = [Process(index, count).part(range(7)) for index in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_that_do_the_same_together_are_one_part_that_the_first_writes():
    hosts = [Process(index, 3, together=True) for index in range(3)]
    assert [host.part(range(7)) for host in hosts] == [range(7)] * 3
    assert [host.writes for host in hosts] == [True, False, False]
    assert [host.parts for host in hosts] == [1] * 3 and Process(2, 3).writes and Process(2, 3).parts == 3


_JOIN_AND_LEAVE = """
import sys
from dvp_jax.runs import processes
coordinator, count, index = (flag.split("=")[1] for flag in sys.argv[1:])
processes.join(coordinator, int(count), int(index))
processes.leave()
"""


def test_processes_that_leave_end_without_a_word():
    # Their threads that watch the others must be out of JAX's client before Python ends, else it aborts at times.
    for run in end(begin([["-c", _JOIN_AND_LEAVE]] * 6)):
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_process_that_was_not_asked_to_join_is_alone_and_waits_for_nobody():
    assert current() == ALONE == Process(0, 1)
    ALONE.wait()
    ALONE.agree({"config": {"limit": 1}})


def test_differences_name_nested_fields_with_both_values():
    one = {"config": {"limit": 3, "tasks": {"squad": {}}, "same": [1]}, "python": "3.11"}
    other = {"config": {"limit": 4, "tasks": {}, "same": [1], "new": None}, "python": "3.11"}
    assert differences(one, other).keys() == {"config.limit", "config.tasks.squad", "config.tasks"}
    assert differences(one, other)["config.limit"] == (3, 4)
    assert differences(one, one) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost", 2, 0), r"^coordinator is 'localhost'; allowed: host:port, or \"auto\"$"),
        (("localhost:x", 2, 0), "^coordinator is 'localhost:x'"),
        (("localhost:1", None, 0), "^num_processes is None; allowed: at least 1$"),
        (("localhost:1", 0, 0), "^num_processes is 0; allowed: at least 1$"),
        (("localhost:1", 2, None), "^process_id is None; allowed: from 0 to 1$"),
        (("localhost:1", 2, 2), "^process_id is 2; allowed: from 0 to 1$"),
    ],
)
def test_impossible_places_in_a_run_are_refused_before_anything_is_joined(arguments, message):
    with pytest.raises(ValueError, match=message):
        join(*arguments)
    assert current() == ALONE
