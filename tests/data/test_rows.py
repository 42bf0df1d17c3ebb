"""Data files and rows of the hub: text as it is written, or one line that names the place."""

import csv
import html
import io
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import datasets
import hypothesis
import hypothesis.strategies as st
import pytest

from dvp_jax.data import Example, Samsum, Squad, Translation, make_task
from dvp_jax.report.html import write_report
from dvp_jax.report.table import Section, Table
from tests.data.helpers import raises, write

AS_WRITTEN = ["None", "NA", "null", "nan", "007", "1e5", "True", "2012-03-04", "-", "  two  ", "a\u2028b", 'a "b"']
HALF = "\ud83d"  # of an emoji


def text_to_text(path, **fields):
    return make_task("text_to_text", path=str(path), **fields)


def pairs(task):
    return [(example.prompt, *example.references) for example in task.load()]


def as_csv(rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue()


def as_json_lines(rows):
    return "".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])


WRITERS = {
    ".csv": as_csv,
    ".tsv": lambda rows: "".join("\t".join(row) + "\n" for row in rows),
    ".jsonl": as_json_lines,
    ".json": lambda rows: json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]], indent=1),
}
FORMATS = pytest.mark.parametrize("ending", WRITERS)


@FORMATS
@pytest.mark.parametrize("cell", AS_WRITTEN)
def test_a_cell_is_the_text_in_the_file(ending, cell, tmp_path):
    rows = [["source", "other", "target"], [cell, "", f"{cell}."], [cell, "1", cell]]  # alike throughout a column
    path = write(tmp_path / f"rows{ending}", WRITERS[ending](rows))
    assert pairs(text_to_text(path)) == [(cell, f"{cell}."), (cell, cell)]


@FORMATS
@pytest.mark.parametrize("line_end", ["\r\n", "\r"], ids=["Windows", "old Macs"])
def test_line_ends_and_a_byte_order_mark_are_no_text(ending, line_end, tmp_path):
    content = WRITERS[ending]([["source", "target"], ["a", "b"], ["c", "d"]]).replace("\r\n", "\n")
    path = write(tmp_path / f"rows{ending}", "\ufeff" + content.replace("\n", line_end))
    assert pairs(text_to_text(path)) == [("a", "b"), ("c", "d")]


def test_json_lines_may_end_in_json_and_blank_lines_are_no_rows(tmp_path):
    path = write(tmp_path / "rows.json", '\n{"source": "a", "target": "b"}\n \n{"source": "c", "target": "d"}')
    assert pairs(text_to_text(path)) == [("a", "b"), ("c", "d")]
    path = write(tmp_path / "rows.csv", 'source,target\n\na,b\n\n"c\n\n1",d\n\n')
    assert pairs(text_to_text(path)) == [("a", "b"), ("c\n\n1", "d")]


def test_an_ending_may_have_capitals(tmp_path):
    assert pairs(text_to_text(write(tmp_path / "ROWS.CSV", "source,target\na,b\n"))) == [("a", "b")]


def test_tsv_has_no_quotes(tmp_path):
    lines = 'source\ttarget\n"Yes, he said\tJa, sagte er\n""\t"\nit\'s 5"\tb\\t\n'
    expected = [('"Yes, he said', "Ja, sagte er"), ('""', '"'), ("it's 5\"", "b\\t")]
    assert pairs(text_to_text(write(tmp_path / "rows.tsv", lines))) == expected


def test_a_cell_may_be_longer_than_pythons_limit_of_a_field(tmp_path):
    dialogue = "A: hi, B\n" * 15_000  # 135,000 characters
    path = write(tmp_path / "test.csv", as_csv([["id", "dialogue", "summary"], ["1", dialogue, "s"]]))
    assert Samsum(path).load() == [Example("1", f"summarize: {dialogue}", ("s",))]


REFUSED = {
    "a comma without quotes": (".csv", "source,target\nYes, he runs.,Ja\n", "line 2 has 3 fields; allowed: 2"),
    "a field too few": (".csv", 'source,target\n"a\nb",c\nd\n', "line 4 has 1 fields; allowed: 2"),
    "an empty line that is not empty": (".tsv", "source\ttarget\n \n", "line 2 has 1 fields; allowed: 2"),
    "a tab too many": (".tsv", "source\ttarget\na\tb\nc\td\t\n", "line 3 has 3 fields; allowed: 2"),
    "an open quote": (".csv", 'source,target\na,b\n"c,d\ne,f\n', "line 3: not CSV"),
    "an open quote before another": (".csv", 'source,target\n"c,d\n"e",f\n', "line 2: not CSV"),
    "an open quote in a later line of its row": (".csv", 'source,target\n"a\n""b\n","d\ne,f\n', "line 4: not CSV"),
    "text after a quote": (".csv", 'source,target\na,b\n"c" d,e\n', "line 3: not CSV"),
    "a line end of old Macs": (".csv", "source,target\nfoo,ba\rr,x\n", "line 2: not CSV"),
    "a column twice": (".csv", "source,target,source\na,b,c\n", "line 1: column 'source' is there twice"),
    "no such column": (".tsv", "Source\ttarget \na\tb\n", "line 1: no column source, target; it has"),
    "no rows": (".csv", "source,target\n", "holds no rows"),
    "no rows in a list": (".json", "[]", "holds no rows"),
    "a blank cell": (".csv", "source,target\na,b\n , c\n", "line 3: source is ' '; allowed: a text"),
    "no key": (".jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', "line 2 has no column 'target'"),
    "a key twice": (".jsonl", '\n{"source": "a", "source": "b"}\n', "line 2: not JSON: the key 'source'"),
    "null": (".json", '[{"source": "a", "target": null}]', "row 1: target is None; allowed: a text"),
    "a number": (
        ".json",
        '[{"source": "a", "target": "b"}, {"source": 7}]',
        "row 2: source is 7; allowed: a text",
    ),
    "a list": (".jsonl", '["source", "target"]\n', "line 1 is ['source', 'target']; allowed: a JSON object"),
    "half an object": (".jsonl", '{"source": "a", "target": "b"}\n{"source":\n', "line 2: not JSON"),
    "an object of two lines": (".json", '{"source": "a",\n"target": "b"}\n', "allowed: an object a line"),
    "half a list": (".json", '[{"source": "a",\n"target": "b"},\n', "line 3: not JSON"),
    "a number too long to read": (".jsonl", '{"source": ' + 5000 * "1" + "}\n", "line 1: not JSON"),
    "lists in lists": (".json", 100_000 * "[", "not JSON"),
    "half an emoji": (".jsonl", '{"source": "a", "target": "b \\ud83d"}\n', r"line 1: target has '\ud83d'"),
    "half an emoji, written as bytes": (".csv", b"source,target\na,b\xed\xa0\xbd\n", "line 2: not UTF-8"),
    "Latin-1": (".tsv", "source\ttarget\na\tb\nsch\xf6n\tc\n".encode("latin-1"), "line 3: not UTF-8"),
    "UTF-16": (".csv", "source,target\na,b\n".encode("utf-16"), "line 1: not UTF-8"),
    "UTF-16 without a mark": (".csv", "source,target\na,b\n".encode("utf-16-le"), "line 1: not UTF-8"),
    "a byte that is 0": (".tsv", "source\ttarget\na\tb\0c\n", "line 2: not UTF-8"),
    "no bytes": (".csv", "", "is empty"),
    "a mark alone": (".jsonl", "\ufeff \n", "is empty"),
    "another ending": (".xml", "<a/>", "allowed endings: .csv, .tsv, .json, .jsonl"),
}


@pytest.mark.parametrize(("ending", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_in_one_line_that_names_the_place(ending, content, message, tmp_path):
    path = write(tmp_path / f"rows{ending}", content)
    with raises(ValueError, path, message) as error:
        text_to_text(path).load()
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


@FORMATS
def test_a_file_that_another_replaces_is_read_again(ending, tmp_path):
    path, other = tmp_path / f"rows{ending}", tmp_path / "other"
    for word in ("eins", "zwei"):
        write(other, WRITERS[ending]([["source", "target"], ["a", word]]))
        os.utime(other, (1_000_000, 1_000_000))
        other.replace(path)
        assert pairs(text_to_text(path)) == [("a", word)]


@pytest.mark.parametrize("name", ["test.csv", "test.parquet"])
def test_a_local_folder_is_read_anew_and_fills_no_cache(name, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = tmp_path / "own"
    folder.mkdir()
    for word in ("eins", "zwei"):
        rows = {"source": ["a"], "target": [word]}
        frame = datasets.Dataset.from_dict(rows)
        (frame.to_csv if name.endswith("csv") else frame.to_parquet)(folder / name)
        os.utime(folder / name, (1_000_000, 1_000_000))
        assert pairs(make_task("text_to_text", dataset=str(folder))) == [("a", word)]
    assert not cache.exists()


@pytest.mark.parametrize("name", ["test.csv", "data/test.csv", "test-00000-of-00002.csv", "test/part1.csv"])
def test_text_of_a_local_folder_is_read_as_a_file_is(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write(tmp_path / name, "source,target\nNone,007\n")
    task = make_task("text_to_text", dataset=str(tmp_path))
    assert pairs(task) == [("None", "007")]
    write(tmp_path / name, "source,target\nYes, he runs.,Ja\n")  # pandas would take " he runs." for the source
    with raises(ValueError, path, "line 2 has 3 fields"):
        task.load()
    with raises(ValueError, f"split is 'dev'; allowed in the folder {tmp_path}: test"):
        make_task("text_to_text", dataset=str(tmp_path), split="dev").load()


def test_a_split_of_a_local_folder_may_have_several_files(tmp_path):
    for word in ("eins", "zwei"):
        write(tmp_path / f"test-{word}.jsonl", json.dumps({"source": "2012-03-04", "target": word}))
    assert pairs(make_task("text_to_text", dataset=str(tmp_path))) == [
        ("2012-03-04", "eins"),
        ("2012-03-04", "zwei"),
    ]


@pytest.mark.parametrize(("dataset", "split"), [("", "test"), ("junk", "test"), ("good", "train")])
def test_a_data_set_that_cannot_be_read_is_refused_in_one_line(dataset, split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("junk", "good"):
        Path(folder).mkdir()
    Path("junk/test.parquet").write_bytes(b"junk")
    datasets.Dataset.from_dict({"source": ["a"], "target": ["b"]}).to_parquet("good/test.parquet")
    with raises(ValueError, f"data set {dataset} cannot be read: ") as error:
        make_task("text_to_text", dataset=dataset, split=split).load()
    assert len(str(error.value).splitlines()) == 1


BAD_ROWS = {
    "no answers": (Squad(), {"answers": {"text": []}}, "row 2 has no answers, as in SQuAD 2.0"),
    "answers of another form": (Squad(), {"answers": ["a"]}, "row 2 has no list of texts in its answers"),
    "an answer that is null": (Squad(), {"answers": {"text": ["a", None]}}, "row 2: answer is None"),
    "a question that is null": (Squad(), {"question": None}, "row 2: question is None"),
    "an id that is null": (Squad(), {"id": None}, "row 2: id is None"),
    "half an emoji in a context": (Squad(), {"context": HALF}, r"row 2: context has '\ud83d'"),
    "half an emoji in an id": (Samsum(), {"id": HALF}, r"row 2: id has '\ud83d'"),
    "half an emoji in a dialogue": (Samsum(), {"dialogue": f"A: {HALF}"}, r"row 2: dialogue has '\ud83d'"),
    "a summary that is a number": (Samsum(), {"summary": 3}, "row 2: summary is 3"),
    "a target that is null": (Translation(), {"de": None}, "row 2: de is None"),
    "a target that is blank": (Translation(), {"translation": {"en": "a", "de": "\n"}}, r"row 2: de is '\n'"),
}
GOOD_ROW = {
    "id": "1", "question": "q", "context": "c", "answers": {"text": ["a"]},
    "dialogue": "d", "summary": "s", "en": "e", "de": "d",
}  # fmt: skip


@pytest.mark.parametrize(("task", "cells", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_the_row_of_the_hub_that_is_not_text_is_named(task, cells, message, hub):
    hub.rows = [GOOD_ROW, {**GOOD_ROW, **cells}]
    with raises(ValueError, f"data set {task.dataset}, {message}"):
        task.load()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("text_to_text", {"path": "a.csv", "prefix": HALF}),
        ("translation", {"source_language": HALF}),
        ("translation", {"target_language": " "}),
    ],
)
def test_a_prompt_that_cannot_be_tokenized_is_refused_with_its_field(name, fields):
    field, value = list(fields.items())[-1]
    with raises(ValueError, field, repr(value)):
        make_task(name, **fields)


AWKWARD = [
    "\ud83d",
    "\ude00",
    "\0",
    "\x1b",
    "\r",
    "\n",
    "\t",
    "\x0b",
    "\x1c",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
]
ANY_TEXT = st.text(
    st.sampled_from([*AWKWARD, *"aé日,\"'|\\ <&"]) | st.characters(exclude_categories=()), max_size=12
)


def shown(text):
    """What a table shows, from Unicode's own properties."""
    steering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    hidden = [unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in text]
    return "".join(
        c.encode("unicode_escape").decode() if hide or unicodedata.bidirectional(c) in steering else c
        for c, hide in zip(text, hidden, strict=True)
    )


def load_or_refuse(task, folder, texts, *, escaped):
    """The example that a file of two texts holds; None where it was refused and had to be."""
    if escaped:  # JSON joins two halves of a character
        texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in texts]
    bad = [not text.strip() or bool(re.search("[\ud800-\udfff]", text)) for text in texts]
    if any(bad) or (not escaped and "\0" in "".join(texts)):
        with raises(ValueError, folder) as error:
            task.load()
        assert len(str(error.value).splitlines()) == 1
        return None
    (example,) = task.load()
    assert example.prompt.endswith(texts[0]) and example.references == (texts[1],)
    return example


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.sampled_from([*WRITERS, "parallel"]), ANY_TEXT, ANY_TEXT)
def test_any_text_goes_from_a_file_to_a_report_or_is_refused_in_one_line(ending, source, target):
    if ending in (".tsv", "parallel"):  # they cannot hold these
        source, target = (re.sub(r"^\ufeff+|[\t\n]|\r$", "", text) for text in (source, target))
    with tempfile.TemporaryDirectory() as folder:
        if ending == "parallel":
            paths = [os.path.join(folder, name) for name in ("source", "target")]
            for path, text in zip(paths, (source, target), strict=True):
                write(Path(path), f"{text}\n".encode("utf-8", "surrogatepass"))
            task = Translation(*paths, bleu_tokenizer="char")
        else:
            content = WRITERS[ending]([["source", "target"], [source, target]])
            task = text_to_text(write(Path(folder, f"rows{ending}"), content.encode("utf-8", "surrogatepass")))
        example = load_or_refuse(task, folder, [source, target], escaped=ending.startswith(".json"))
        if example is None:
            return
        assert all(0 <= value <= 100.0001 for value in task.score([example.prompt], [example]).values())
        table = Table(["prompt", "reference"], [[example.prompt, *example.references]])
        cells = [shown(example.prompt), shown(example.references[0])]
        assert table.markdown().splitlines()[2:] == [
            "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
        ]
        write_report(Path(folder, "report.html"), "Texts", [Section("", (table,))], {})
        page = Path(folder, "report.html").read_bytes().decode("utf-8")
        assert [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL)] == cells
