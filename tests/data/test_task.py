"""What all tasks have in common: fields, metrics, the hub, and files that cannot be read."""

from pathlib import Path

import datasets
import pytest

from dvp_jax.data import Example, Samsum, Squad, Translation, make_task
from tests.data.helpers import raises, write


@pytest.mark.parametrize(
    ("name", "source", "new"), [("squad", 512, 30), ("samsum", 512, 128), ("translation", 512, 64)]
)
def test_lengths_are_the_published_ones_unless_given(name, source, new):
    task = make_task(name)
    assert (task.name, task.max_source_length, task.max_new_tokens) == (name, source, new)
    task = make_task(name, max_source_length=9, max_new_tokens=5)
    assert (task.name, task.max_source_length, task.max_new_tokens) == (name, 9, 5)


def test_texts_of_any_kind_have_the_longest_source_of_the_others():
    task = make_task("text_to_text", path="p")
    assert (task.max_source_length, task.max_new_tokens) == (512, 128)


def test_make_task_passes_its_fields_on():
    assert make_task("samsum", split="test", dataset="x/y") == Samsum(split="test", dataset="x/y")
    assert make_task("squad", path="p") == Squad("p")
    assert make_task("translation", source_path="s", target_path="t") == Translation("s", "t")


def test_each_task_scores_by_its_own_metric():
    one = [Example("1", "p", ("a green house", "a house"))]
    assert make_task("squad").score(["the house"], one) == {"f1": 100.0, "exact_match": 100.0}
    rouge = make_task("samsum").score(["a green house"], one)
    assert rouge == pytest.approx({"rougeL": 100, "rouge1": 100, "rouge2": 100, "rougeLsum": 100})
    assert next(iter(rouge)) == "rougeL"  # the one to quote first
    # The second reference is not the summary's, nor the translation's.
    assert make_task("samsum").score(["a house"], one)["rouge2"] == 0.0
    bleu = make_task("translation").score(["a green house ."], [Example("1", "p", ("a green house .",))])
    assert bleu == pytest.approx({"bleu": 100, "chrf": 100})
    assert next(iter(bleu)) == "bleu"


def test_an_unknown_task_is_refused_with_the_known_ones():
    with raises(ValueError, "'glue'", "squad", "samsum", "translation"):
        make_task("glue")


@pytest.mark.parametrize(
    ("task", "field", "known"),
    [("squad", "source_path", "split"), ("samsum", "target_path", "path"), ("translation", "path", "source_path")],
)
def test_an_unknown_field_of_a_task_is_refused_with_the_known_ones(task, field, known):
    with raises(ValueError, task, f"no {field}", known):
        make_task(task, **{field: "x"})


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("max_source_length", 0, "an integer of at least 1"),
        ("max_source_length", True, "an integer of at least 1"),
        ("max_new_tokens", "9", "an integer of at least 1"),
        ("path", 5, "a text or None"),
        ("split", None, "a text"),
    ],
)
def test_a_value_that_a_field_of_a_task_cannot_have_is_refused(field, value, wanted):
    with raises(ValueError, f"{field} of task squad is {value!r}; allowed: {wanted}"):
        make_task("squad", **{field: value})


@pytest.mark.parametrize(
    ("task", "row", "column"),
    [
        (Squad(), {"id": "1", "question": "q", "answers": {"text": ["a"]}}, "context"),
        (Samsum(), {"id": "1", "dialogue": "A: hi"}, "summary"),
        (Translation(target_column="cs"), {"en": "A dog.", "de": "Ein Hund."}, "cs"),
    ],
    ids=["squad", "samsum", "translation"],
)
def test_a_hub_data_set_without_the_column_is_named(hub, task, row, column):
    hub.rows = [row]
    with raises(ValueError, column):
        task.load()


def test_a_local_folder_is_read_as_a_hub_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    folder.mkdir()
    write(folder / "validation.jsonl", '{"id": "1", "dialogue": "A: hi", "summary": "s"}\n')
    write(folder / "test.jsonl", '{"id": "2", "dialogue": "B: no", "summary": "t"}\n')
    assert Samsum(dataset=str(folder)).load() == [Example("1", "summarize: A: hi", ("s",))]
    assert Samsum(dataset=str(folder), split="test").load() == [Example("2", "summarize: B: no", ("t",))]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Squad(), "rajpurkar/squad"),
        (Samsum(), "knkarthick/samsum"),
        (Translation(dataset="nobody/nothing"), "nobody/nothing"),
    ],
    ids=["squad", "samsum", "translation"],
)
def test_an_unreachable_data_set_is_a_missing_file(task, name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # none of the user's own
    with raises(FileNotFoundError, name):
        task.load()


def squad(path):
    return Squad(path)


def samsum(path):
    return Samsum(path)


def sources(path):
    """A translation whose source file is the given one, with a good target file."""
    return Translation(path, write(Path(path).with_name("good"), "eins\n"))


def targets(path):
    return Translation(write(Path(path).with_name("good"), "one\n"), path)


READERS = pytest.mark.parametrize("task", [squad, samsum, sources, targets])


@READERS
def test_a_missing_file_is_named(task, tmp_path):
    path = str(tmp_path / "missing.csv")
    with raises(FileNotFoundError, path):
        task(path).load()


@READERS
def test_a_folder_is_no_data_file(task, tmp_path):
    path = tmp_path / "folder.csv"
    path.mkdir()
    with raises(FileNotFoundError, path):
        task(str(path)).load()


@READERS
@pytest.mark.parametrize("content", ["", "\n \n"], ids=["no bytes", "white space"])
def test_an_empty_file_is_named(task, content, tmp_path):
    path = write(tmp_path / "data.csv", content)
    with raises(ValueError, path, "empty"):
        task(path).load()


@READERS
def test_the_line_that_is_not_utf8_is_named(task, tmp_path):
    path = write(tmp_path / "data.csv", b"one\ntwo\nth\xe9 end\nfour\n")  # latin-1
    with raises(ValueError, path, "line 3", "UTF-8"):
        task(path).load()
