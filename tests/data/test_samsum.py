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


def test_samsums_test_file_has_its_800_dialogues(shared):
    examples = Samsum(str(shared / "data/samsum/test.csv")).load()
    assert len(examples) == 800
    assert examples[0].id == "13862856"
    assert examples[0].prompt.startswith(
        "summarize: Hannah: Hey, do you have Betty's number?\nAmanda: Lemme check\n"
    )
