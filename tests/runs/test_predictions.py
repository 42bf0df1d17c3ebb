"""What an interrupted evaluation finds again."""

import concurrent.futures
import dataclasses
import json
import threading

import pytest

from dvp_jax.runs.predictions import Predictions
from dvp_jax.runs.processes import Process


def texts(*names):
    return [{"id": name, "text": f"Bär {name}\u2028"} for name in names]


def ids(lines):
    return None if lines is None else [line["id"] for line in lines]


def test_batches_of_an_interrupted_run_are_found_again(tmp_path):
    first = Predictions(tmp_path, "key")
    first.add("squad", "full", 0, texts("a", "b"))
    first.add("squad", "dvp", 0, texts("a", "b"))
    second = Predictions(tmp_path, "key")
    assert ids(second.get("squad", "full", 0)) == ids(second.get("squad", "dvp", 0)) == ["a", "b"]
    assert second.get("squad", "full", 0)[0]["text"] == "Bär a\u2028"
    for place in (("samsum", "full", 0), ("squad", "calm", 0), ("squad", "full", 1)):
        assert second.get(*place) is None
    second.add("squad", "full", 1, texts("c"))
    assert ids(Predictions(tmp_path, "key").get("squad", "full", 1)) == ["c"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    predictions = Predictions(tmp_path, "key")
    path = tmp_path / "predictions.partial.jsonl"
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"^{path} cannot be written: No space left on device$"):
        predictions.add("squad", "full", 0, texts("a"))


@pytest.mark.parametrize("torn", range(1, 75, 6))
def test_a_torn_line_is_dropped_with_its_batch(tmp_path, torn):
    first = Predictions(tmp_path, "key")
    first.add("squad", "full", 0, texts("a", "b"))
    whole = (tmp_path / "predictions.partial.jsonl").read_bytes()
    first.add("squad", "full", 1, texts("c", "d"))
    grown = (tmp_path / "predictions.partial.jsonl").read_bytes()
    assert len(grown) - len(whole) > 2 * 75
    for cut in (len(whole) + torn, len(grown) - torn):
        (tmp_path / "predictions.partial.jsonl").write_bytes(grown[:cut])
        found = Predictions(tmp_path, "key")
        assert ids(found.get("squad", "full", 0)) == ["a", "b"]
        assert found.get("squad", "full", 1) is None
        found.add("squad", "full", 1, texts("c", "d"))
        assert (tmp_path / "predictions.partial.jsonl").read_bytes() == grown


def test_nothing_of_another_key_is_used(tmp_path):
    Predictions(tmp_path, "key").add("squad", "full", 0, texts("a"))
    assert Predictions(tmp_path, "other").get("squad", "full", 0) is None
    assert Predictions(tmp_path, "key").get("squad", "full", 0) is None, "the other run has begun"


def test_a_finished_run_is_found_again_and_outlives_one_of_another_key(tmp_path):
    first = Predictions(tmp_path, "key")
    lines = first.add("squad", "full", 0, texts("a", "b"))
    first.finish(lines, {"rows": [{"name": "full"}]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "results.json"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["rows"], results["key"]) == ([{"name": "full"}], "key")
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().split("\n")[:-1]]
    assert [(line["task"], line["name"], line["batch"], line["id"]) for line in written] == [
        ("squad", "full", 0, "a"),
        ("squad", "full", 0, "b"),
    ]
    Predictions(tmp_path, "other").add("squad", "full", 0, texts("x"))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert ids(Predictions(tmp_path, "key").get("squad", "full", 0)) == ["a", "b"]


def test_results_are_not_written_where_predictions_could_not_be(tmp_path):
    def two_and_stop():
        yield {"text": "1"}
        yield {"text": "2"}
        raise KeyboardInterrupt

    run = Predictions(tmp_path, "key")
    run.add("squad", "full", 0, texts("a"))
    with pytest.raises(KeyboardInterrupt):
        run.finish(two_and_stop(), {"rows": []})
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.partial.jsonl"]
    assert ids(Predictions(tmp_path, "key").get("squad", "full", 0)) == ["a"]


@dataclasses.dataclass(frozen=True)
class Threads(Process):
    """A process of a run, as a thread."""

    barrier: threading.Barrier | None = None

    def wait(self):
        self.barrier.wait(10)


def in_threads(count, function):
    """What the function returns for each of so many processes."""
    barrier = threading.Barrier(count)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda index: function(Threads(index, count, barrier=barrier)), range(count)))


def test_processes_gather_what_each_decoded_and_any_number_of_them_goes_on_from_it(tmp_path):
    def decode(process):
        run = Predictions(tmp_path, "key", process)
        found = [batch for batch in range(9) if run.get("squad", "full", batch)]
        for batch in process.part([batch for batch in range(upto) if batch not in found]):
            run.add("squad", "full", batch, texts(f"{batch}a", f"{batch}b"))
        run.gather()
        return found, ids(run.all("squad", "full", upto))

    def expected(upto):
        return [f"{batch}{row}" for batch in range(upto) for row in "ab"]

    upto = 4
    assert in_threads(2, decode) == [([], expected(4))] * 2
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["predictions.partial-1.jsonl", "predictions.partial.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / names[0]).read_text().split("\n")[:-1]]
    assert [line["id"] for line in lines] == ["1a", "1b", "3a", "3b"], "its part and no more"
    upto = 7
    assert in_threads(3, decode) == [([0, 1, 2, 3], expected(7))] * 3
    assert ids(Predictions(tmp_path, "key").all("squad", "full", 7)) == expected(7)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.partial.jsonl"]


def test_a_batch_that_two_journals_hold_is_found_once(tmp_path):
    Predictions(tmp_path, "key").add("squad", "full", 0, texts("a", "b"))
    copy = (tmp_path / "predictions.partial.jsonl").read_bytes()
    (tmp_path / "predictions.partial-1.jsonl").write_bytes(copy)
    (tmp_path / "predictions.partial-2.jsonl").write_bytes(copy[:-20])
    assert ids(Predictions(tmp_path, "key").get("squad", "full", 0)) == ["a", "b"]


def test_a_batch_that_another_process_wrote_elsewhere_is_named(tmp_path):
    run = Predictions(tmp_path, "key")
    run.add("squad", "full", 0, texts("a"))
    with pytest.raises(OSError, match=rf"workdir {tmp_path} lacks batch 1 of squad by full; allowed: a folder"):
        run.all("squad", "full", 2)


def finished(folder, key, *names):
    run = Predictions(folder, key)
    run.finish(run.add("squad", "full", 0, texts(*names)), {"rows": []})


def test_results_are_found_only_with_the_texts_that_they_were_written_with(tmp_path):
    finished(tmp_path, "A", "a")
    results = (tmp_path / "results.json").read_bytes()
    finished(tmp_path, "B", "b")
    (tmp_path / "results.json").write_bytes(results)  # as a run that was killed between the two files left them
    with pytest.warns(
        UserWarning, match="predictions.jsonl is not the one of results.json; its texts are decoded"
    ):
        assert Predictions(tmp_path, "A").get("squad", "full", 0) is None


def test_no_results_stand_beside_texts_of_another_run_wherever_it_is_killed(tmp_path, monkeypatch):
    finished(tmp_path, "A", "a")
    run = Predictions(tmp_path, "B")
    lines = run.add("squad", "full", 0, texts("b"))

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dvp_jax.runs.predictions.write_whole", kill)
    with pytest.raises(KeyboardInterrupt):
        run.finish(lines, {"rows": []})
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    assert ids(Predictions(tmp_path, "B").get("squad", "full", 0)) == ["b"]


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl", "predictions.partial.jsonl"])
@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data.replace(b"full", b"dull", 1)])
def test_files_that_were_cut_short_or_edited_are_named_and_decoded_again(tmp_path, name, damage):
    if name == "predictions.partial.jsonl":
        run = Predictions(tmp_path, "key")
        run.add("squad", "full", 0, texts("a", "b"))
        run.add("squad", "full", 1, texts("c"))
    else:
        finished(tmp_path, "key", "a", "b")
    data = (tmp_path / name).read_bytes()
    if name == "predictions.partial.jsonl":
        first, rest = data.split(b"\n", 1)
        (tmp_path / name).write_bytes(damage(first) + b"\n" + rest)
    else:
        (tmp_path / name).write_bytes(damage(data) if name != "results.json" else damage(data) + b" ")
    with pytest.warns(UserWarning, match=name):
        found = Predictions(tmp_path, "key")
    assert found.get("squad", "full", 0) is None
    assert ids(found.get("squad", "full", 1)) == (["c"] if name == "predictions.partial.jsonl" else None)
