"""Processes of one run: who does what, and what makes them one run."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dvp_jax.runs import launch
from dvp_jax.runs.processes import ALONE, Process, current, differences, join
from tests.processes import begin, end, errors


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_each_item_is_in_the_part_of_one_process_and_parts_differ_by_one_at_most(count):
    parts = [Process(index, count).part(range(7)) for index in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_that_do_the_same_together_are_one_part_that_the_first_writes():
    processes = [Process(index, 3, together=True) for index in range(3)]
    assert [process.part(range(7)) for process in processes] == [range(7)] * 3
    assert [process.writes for process in processes] == [True, False, False]
    assert [process.parts for process in processes] == [1] * 3
    assert Process(2, 3).writes and Process(2, 3).parts == 3


_JOIN_AND_LEAVE = """
import sys
from dvp_jax.runs import processes
coordinator, count, index = (flag.split("=")[1] for flag in sys.argv[1:])
processes.join(coordinator, int(count), int(index))
processes.leave()
"""


def test_processes_that_leave_end_without_a_word():
    # A thread that is still in JAX's client when Python ends would abort the process at times.
    for run in end(begin([["-c", _JOIN_AND_LEAVE]] * 6)):
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def stop_one() -> None:
    """Fails or is killed in the process that `sys.argv` names, while the other is in a barrier, say."""
    number, how, other, marker = sys.argv[1:5]
    sys.argv[1:5] = []

    def main() -> None:
        process = current()
        process.agree({})  # connects their devices
        if process.index == int(number):
            Path(marker).touch()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("bad input")
        if other == "in a barrier":
            process.wait()
        elif other == "in a collective":
            process.agree({})
        time.sleep(600)

    launch.run(main, several=True)


STOPS = [
    (0, "failed", "in a barrier"),
    (1, "failed", "in a collective"),
    (1, "failed", "at work"),
    (0, "killed", "at work"),
    (1, "killed", "in a barrier"),
]


def stop(number: int, how: str, others: str, marker: Path) -> tuple[list[subprocess.CompletedProcess], float]:
    """Stops one of two processes; both ended, and the seconds since then."""
    processes = begin([[stop_one, number, how, others, marker]] * 2)
    while not marker.exists():
        assert None in [process.poll() for process in processes], [run.stderr for run in end(processes)]
        time.sleep(0.01)
    since = time.monotonic()
    return end(processes), time.monotonic() - since


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """All of STOPS, at once since they mostly wait."""
    folder = tmp_path_factory.mktemp("stopped")
    with concurrent.futures.ThreadPoolExecutor(len(STOPS)) as pool:
        results = [pool.submit(stop, *case, folder / str(index)) for index, case in enumerate(STOPS)]
    return dict(zip(STOPS, [result.result() for result in results], strict=True))


@pytest.mark.slow  # half a minute, of which it waits most
@pytest.mark.parametrize("case", STOPS, ids=lambda case: "-".join(map(str, case)).replace(" ", "-"))
def test_the_other_stops_within_a_minute_when_a_process_fails_or_is_killed(stopped, case):
    runs, seconds = stopped[case]
    number, how, _ = case
    assert seconds < 60
    assert runs[1 - number].returncode != 0, "whoever looks at the other sees that the run has failed"
    if how == "killed":
        assert runs[number].returncode == -signal.SIGKILL
    else:
        assert runs[number].returncode == 1
        assert errors(runs[number]) == ["error: bad input"]


def fail_alike() -> None:
    def main() -> None:
        time.sleep(2 * current().index)
        raise ValueError("bad input")

    launch.run(main, several=True)


def test_processes_that_fail_for_the_same_reason_each_say_so_and_nothing_else():
    for run in end(begin([[fail_alike]] * 2)):
        assert (run.returncode, run.stdout, run.stderr) == (1, "", "error: bad input\n")


def agree_twice() -> None:
    def main() -> None:
        process = current()
        process.agree({"config": {"text": "B\u00e4r \u2028", "none": None}})
        process.agree({"config": {"limit": 3 if process.index < 2 else "a longer \u00e4"}, "same": [1]})

    launch.run(main, several=True)


def test_each_of_three_processes_says_which_differs_with_both_values():
    for run in end(begin([[agree_twice]] * 3)):
        assert (run.returncode, run.stdout) == (1, "")
        said = [line for line in run.stderr.splitlines() if not line.startswith("[Gloo]")]
        assert said == ["error: process 2 differs from process 0: config.limit is 'a longer \u00e4', not 3"]


def agree_with_unequal_devices() -> None:
    num_devices = 2 if sys.argv[-1] == "--process_id=1" else 1
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    launch.run(lambda: current().agree({}), several=True)


def test_processes_with_unequal_numbers_of_devices_are_refused():
    for run in end(begin([[agree_with_unequal_devices]] * 2)):
        message = "error: process 1 has 2 devices; allowed: as many as process 0, 1\n"
        assert (run.returncode, run.stdout, run.stderr) == (1, "", message)


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
