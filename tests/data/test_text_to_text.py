"""Text to text: prompts, references, bad files and fields."""

import json

import pytest

from dvp_jax.data import make_task

ROWS = [{"text": "one, two", "title": "eins\u2028"}, {"text": "drei", "title": "three"}]

COLUMNS = {"source_column": "text", "target_column": "title", "prefix": "say: "}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("rows.json", json.dumps(ROWS)),
        ("rows.csv", 'text,title\n"one, two",eins\u2028\ndrei,three\n'),
        ("rows.tsv", "text\ttitle\none, two\teins\u2028\ndrei\tthree\n"),
    ],
)
def test_text_to_text_reads_two_columns_of_any_common_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    task = make_task("text_to_text", path=str(tmp_path / name), **COLUMNS)
    examples = task.load()
    assert [(e.prompt, e.references) for e in examples] == [
        ("say: one, two", ("eins\u2028",)),
        ("say: drei", ("three",)),
    ]
    assert task.score(["eins", "three"], examples)["rougeL"] == 100.0


def test_text_to_text_needs_one_source_of_rows():
    with pytest.raises(ValueError, match="path is None and dataset None; allowed: one of the two"):
        make_task("text_to_text")
    with pytest.raises(FileNotFoundError, match=r"no data file missing\.csv"):
        make_task("text_to_text", path="missing.csv").load()
