"""Translation: prompts, references, bad files and fields."""

import pytest

from dvp_jax.data import Example, Translation, make_task
from tests.data.helpers import raises, write


def test_translation_prompt_names_the_languages(tmp_path):
    source = write(tmp_path / "a.en", "A dog runs.\nTwo men, talking.\n")
    target = write(tmp_path / "a.de", "Ein Hund läuft.\r\nZwei Männer reden.")
    assert Translation(source, target).load() == [
        Example("0", "translate English to German: A dog runs.", ("Ein Hund läuft.",)),
        Example("1", "translate English to German: Two men, talking.", ("Zwei Männer reden.",)),
    ]
    other = Translation(source, target, source_language="French", target_language="Romanian").load()
    assert other[0].prompt == "translate French to Romanian: A dog runs."


def test_a_language_whose_words_bleu_would_not_find_needs_a_tokenizer(tmp_path):
    source, target = (
        write(tmp_path / "a.en", "A dog runs.\n"),
        write(tmp_path / "a.th", "สุนัขกำลังวิ่งอยู่ในสวนสาธารณะ\n"),
    )
    with raises(
        ValueError, "target_language is 'Thai', but BLEU does not find the references' words so; allowed: Chinese"
    ):
        Translation(source, target, target_language="Thai").load()
    assert len(Translation(source, target, target_language="Thai", bleu_tokenizer="char").load()) == 1
    chinese = write(tmp_path / "a.zh", "一只狗在公园里奔跑\n")
    assert len(Translation(source, chinese, target_language="Chinese").load()) == 1


def test_lines_of_old_macs_are_lines(tmp_path):
    source, target = write(tmp_path / "a.en", "one\rtwo\r"), write(tmp_path / "a.de", "eins\nzwei\n")
    assert [example.references for example in Translation(source, target).load()] == [("eins",), ("zwei",)]


@pytest.mark.parametrize("character", ["\u2028", "\x0c", "\x85", "\x1c"])
def test_a_line_of_parallel_text_ends_only_at_a_newline(tmp_path, character):
    source = write(tmp_path / "a.en", f"one{character}half\ntwo\n")
    target = write(tmp_path / "a.de", "eins\nzwei\n")
    assert Translation(source, target).load() == [
        Example("0", f"translate English to German: one{character}half", ("eins",)),
        Example("1", "translate English to German: two", ("zwei",)),
    ]


def test_translation_rows_of_the_hub_become_examples(hub):
    hub.rows = [{"en": "A dog.", "de": "Ein Hund."}]
    assert Translation().load() == [Example("0", "translate English to German: A dog.", ("Ein Hund.",))]
    hub.rows = [{"text": "A dog.", "translation": "Ein Hund."}]
    columns = {"source_column": "text", "target_column": "translation"}
    assert Translation(**columns).load() == [Example("0", "translate English to German: A dog.", ("Ein Hund.",))]
    hub.rows = [{"translation": {"fr": "Un chien.", "ro": "Un câine."}}]
    fields = {"source_language": "French", "target_language": "Romanian"}
    columns = {"source_column": "fr", "target_column": "ro"}
    task = Translation(dataset="wmt16", subset="ro-fr", split="validation", **fields, **columns)
    assert task.load() == [Example("0", "translate French to Romanian: Un chien.", ("Un câine.",))]
    assert hub.asked == [("bentrevett/multi30k", None, "test")] * 2 + [("wmt16", "ro-fr", "validation")]


def test_parallel_files_of_different_lengths_are_refused(tmp_path):
    source, target = write(tmp_path / "a.en", "one\ntwo\nthree\n"), write(tmp_path / "a.de", "eins\nzwei\n")
    with raises(ValueError, source, "3 lines", target, "2"):
        Translation(source, target).load()


@pytest.mark.parametrize("empty", ["", " \t"], ids=["no characters", "white space"])
def test_the_empty_line_of_parallel_text_is_named(empty, tmp_path):
    full, gap = write(tmp_path / "full", "one\ntwo\nthree\n"), write(tmp_path / "gap", f"eins\n{empty}\ndrei\n")
    with raises(ValueError, gap, "line 2", "empty"):
        Translation(full, gap).load()
    with raises(ValueError, gap, "line 2", "empty"):
        Translation(gap, full).load()


@pytest.mark.parametrize("fields", [{"source_path": "a.en"}, {"target_path": "a.en"}], ids=str)
def test_one_path_of_two_is_refused(fields):
    with raises(ValueError, "source_path", "target_path"):
        Translation(**fields)
    with raises(ValueError, "a.en"):
        make_task("translation", **fields)


def test_multi30ks_test_files_have_their_1000_pairs(shared):
    paths = [str(shared / f"data/multi30k/test_2016_flickr.{language}") for language in ("en", "de")]
    examples = Translation(*paths).load()
    assert len(examples) == 1000
    assert examples[0] == Example(
        "0",
        "translate English to German: A man in an orange hat starring at something.",
        ("Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",),
    )
