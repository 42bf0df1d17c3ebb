"""SamSum: prompts, references, bad files."""

import pytest

from dvp_jax.data import Example, Samsum
from tests.data.helpers import raises, write


def test_samsum_prompt_keeps_the_lines_of_a_dialogue(tmp_path):
    text = 'summary,id,dialogue\r\nÅse is late.,13,"Åse: I\'m ""late"".\r\nBo: ok"\r\ns,14,x: y\r\n'
    assert Samsum(write(tmp_path / "test.csv", text)).load() == [
        Example("13", 'summarize: Åse: I\'m "late".\r\nBo: ok', ("Åse is late.",)),
        Example("14", "summarize: x: y", ("s",)),
    ]


@pytest.mark.parametrize("empty", ["2,,s", "2,a: b,"], ids=["dialogue", "summary"])
def test_samsum_skips_rows_without_a_dialogue_or_a_summary(tmp_path, empty):
    path = write(tmp_path / "test.csv", f"id,dialogue,summary\n1,a: b,s\n{empty}\n3,c: d,t\n")
    assert [example.id for example in Samsum(path).load()] == ["1", "3"]


def test_samsum_without_any_complete_row_is_refused(tmp_path):
    path = write(tmp_path / "test.csv", "id,dialogue,summary\n1,,s\n2,a: b,\n")
    with raises(ValueError, path):
        Samsum(path).load()


def test_samsum_rows_of_the_hub_become_examples_without_the_empty_one(hub):
    hub.rows = [
        {"id": "13", "dialogue": "A: hi\nB: hi", "summary": "They greet."},
        {"id": "14", "dialogue": None, "summary": "Nothing."},  # the published set has such a row
        {"id": 15, "dialogue": "A: bye", "summary": "A leaves."},
    ]
    assert Samsum().load() == [
        Example("13", "summarize: A: hi\nB: hi", ("They greet.",)),
        Example("15", "summarize: A: bye", ("A leaves.",)),
    ]
    assert hub.asked == [("knkarthick/samsum", None, "validation")]


@pytest.mark.parametrize(
    ("header", "missing"),
    [("id,dialogue", "summary"), ("id,Dialogue,summary", "dialogue"), ("key,text,summary", "id, dialogue")],
)
def test_the_missing_columns_are_named(header, missing, tmp_path):
    path = write(tmp_path / "test.csv", f"{header}\n1,2,3\n")
    with raises(ValueError, path, "line 1:", "column", missing):
        Samsum(path).load()


@pytest.mark.parametrize("row", ["2,a: b", "2,a: b,s,more", "2"])
def test_the_line_with_another_number_of_columns_is_named(row, tmp_path):
    path = write(tmp_path / "test.csv", f'id,dialogue,summary\n1,"a:\nb",s\n{row}\n3,c,d\n')
    with raises(ValueError, path, "line 4:", "not 3 columns"):
        Samsum(path).load()


def test_a_quote_that_is_not_closed_is_refused(tmp_path):
    path = write(tmp_path / "test.csv", 'id,dialogue,summary\n1,a,s\n2,"open,s\n3,x,y\n')
    with raises(ValueError, path, "not CSV"):
        Samsum(path).load()


def test_the_line_of_a_quote_that_is_not_closed_is_named(tmp_path):
    path = write(tmp_path / "test.csv", 'id,dialogue,summary\n1,"a:\nb",s\n2,"open,s\n')
    with raises(ValueError, path, "line 4:"):
        Samsum(path).load()


def test_a_csv_without_rows_is_refused(tmp_path):
    path = write(tmp_path / "test.csv", "id,dialogue,summary\n")
    with raises(ValueError, path, "no dialogues"):
        Samsum(path).load()


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "test.csv", "\ufeffid,dialogue,summary\n1,a: b,s\n")
    assert Samsum(path).load() == [Example("1", "summarize: a: b", ("s",))]


def test_samsums_test_file_has_its_800_dialogues(shared):
    examples = Samsum(str(shared / "data/samsum/test.csv")).load()
    assert len(examples) == 800
    assert examples[0].id == "13862856"
    assert examples[0].prompt.startswith(
        "summarize: Hannah: Hey, do you have Betty's number?\nAmanda: Lemme check\n"
    )
