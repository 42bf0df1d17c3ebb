"""What an interrupted evaluation finds again."""

import json

import pytest

from dvp_jax.predictions import Predictions


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
    assert results == {"rows": [{"name": "full"}], "key": "key"}
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
