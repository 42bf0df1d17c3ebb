"""Prompts, references and bad input of the tasks."""

import json
import re

import datasets
import pytest

from dvp_jax.data import Example, Samsum, Squad, Translation, make_task


def write(path, content):
    """Writes text or bytes as they are, and gives the path as the tasks take it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def raises(error, *parts):
    """Expects an error whose message has all parts, in that order."""
    return pytest.raises(error, match=r"[\s\S]*".join(re.escape(str(part)) for part in parts))


def paragraph(context="Oslo is a city.", key="q1", question="What is Oslo?", answers=("a city",)):
    answers = [{"text": text, "answer_start": 0} for text in answers]
    return {"context": context, "qas": [{"id": key, "question": question, "answers": answers}]}


def squad_json(*articles):
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": list(a)} for a in articles]})


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub by rows of our own; holds what was asked for."""

    class Hub:
        def __init__(self):
            self.rows, self.asked = [], []

        def load_dataset(self, path, name=None, *, split=None, **others):
            assert not others
            self.asked.append((path, name, split))
            return self.rows

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


# Prompts, ids, references


def test_squad_prompt_strips_the_left_of_question_and_context_only(tmp_path):
    first = paragraph("  Oslo is a city. ", "5a", " \n What is Oslo? ", ("a city", "city"))
    second = paragraph("Bergen rains.", 7, "Does it rain?", ("rains",))
    path = write(tmp_path / "dev.json", squad_json([first], [second, second]))
    last = Example("7", "question: Does it rain? context: Bergen rains.", ("rains",))
    assert Squad(path).load() == [
        Example("5a", "question: What is Oslo?  context: Oslo is a city. ", ("a city", "city")),
        last,
        last,
    ]


def test_squad_questions_of_one_paragraph_share_its_context(tmp_path):
    shared_context = paragraph("c", "1", "one?", ("a",))
    shared_context["qas"] += paragraph("c", "2", "two?", ("b", "b"))["qas"]
    path = write(tmp_path / "dev.json", squad_json([shared_context]))
    assert Squad(path).load() == [
        Example("1", "question: one? context: c", ("a",)),
        Example("2", "question: two? context: c", ("b", "b")),
    ]


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


def test_translation_prompt_names_the_languages(tmp_path):
    source = write(tmp_path / "a.en", "A dog runs.\nTwo men, talking.\n")
    target = write(tmp_path / "a.de", "Ein Hund läuft.\r\nZwei Männer reden.")
    assert Translation(source, target).load() == [
        Example("0", "translate English to German: A dog runs.", ("Ein Hund läuft.",)),
        Example("1", "translate English to German: Two men, talking.", ("Zwei Männer reden.",)),
    ]
    other = Translation(source, target, source_language="French", target_language="Romanian").load()
    assert other[0].prompt == "translate French to Romanian: A dog runs."


@pytest.mark.parametrize("character", ["\u2028", "\x0c", "\x85", "\x1c"])
def test_a_line_of_parallel_text_ends_only_at_a_newline(tmp_path, character):
    source = write(tmp_path / "a.en", f"one{character}half\ntwo\n")
    target = write(tmp_path / "a.de", "eins\nzwei\n")
    assert Translation(source, target).load() == [
        Example("0", f"translate English to German: one{character}half", ("eins",)),
        Example("1", "translate English to German: two", ("zwei",)),
    ]


@pytest.mark.parametrize(
    ("name", "source", "new"), [("squad", 512, 30), ("samsum", 512, 128), ("translation", 512, 64)]
)
def test_lengths_are_the_published_ones_unless_given(name, source, new):
    task = make_task(name)
    assert (task.name, task.max_source_length, task.max_new_tokens) == (name, source, new)
    task = make_task(name, max_source_length=9, max_new_tokens=5)
    assert (task.name, task.max_source_length, task.max_new_tokens) == (name, 9, 5)


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


# The hub


def test_squad_rows_of_the_hub_become_examples(hub):
    hub.rows = [
        {"id": "56", "title": "t", "question": " Who?", "context": " Ada.", "answers": {"text": ["Ada", "A"]}},
        {"id": "57", "title": "t", "question": "When?", "context": "1843", "answers": {"text": ["1843"]}},
    ]
    assert Squad().load() == [
        Example("56", "question: Who? context: Ada.", ("Ada", "A")),
        Example("57", "question: When? context: 1843", ("1843",)),
    ]
    Squad(dataset="x/y", split="train").load()
    assert hub.asked == [("rajpurkar/squad", None, "validation"), ("x/y", None, "train")]


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


def test_translation_rows_of_the_hub_become_examples(hub):
    hub.rows = [{"en": "A dog.", "de": "Ein Hund."}]
    assert Translation().load() == [Example("0", "translate English to German: A dog.", ("Ein Hund.",))]
    hub.rows = [{"translation": {"fr": "Un chien.", "ro": "Un câine."}}]
    fields = {"source_language": "French", "target_language": "Romanian"}
    columns = {"source_column": "fr", "target_column": "ro"}
    task = Translation(dataset="wmt16", subset="ro-fr", split="validation", **fields, **columns)
    assert task.load() == [Example("0", "translate French to Romanian: Un chien.", ("Un câine.",))]
    assert hub.asked == [("bentrevett/multi30k", None, "test"), ("wmt16", "ro-fr", "validation")]


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
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # not one that the user has cached
    with raises(FileNotFoundError, name):
        task.load()


# Bad files


def squad(path):
    return Squad(str(path))


def samsum(path):
    return Samsum(str(path))


def sources(path):
    """A translation whose source is the file in question, and whose target is good."""
    return Translation(str(path), write(path.with_name("good"), "eins\n"))


def targets(path):
    return Translation(write(path.with_name("good"), "one\n"), str(path))


READERS = pytest.mark.parametrize("task", [squad, samsum, sources, targets])


@READERS
def test_a_missing_file_is_named(task, tmp_path):
    with raises(FileNotFoundError, tmp_path / "missing"):
        task(tmp_path / "missing").load()


@READERS
def test_a_folder_is_no_data_file(task, tmp_path):
    (tmp_path / "folder").mkdir()
    with raises(FileNotFoundError, tmp_path / "folder"):
        task(tmp_path / "folder").load()


@READERS
@pytest.mark.parametrize("content", ["", "\n \n"], ids=["no bytes", "white space"])
def test_an_empty_file_is_named(task, content, tmp_path):
    path = tmp_path / "data"
    write(path, content)
    with raises(ValueError, path, "empty"):
        task(path).load()


@READERS
def test_the_line_that_is_not_utf8_is_named(task, tmp_path):
    path = tmp_path / "data"
    write(path, b"one\ntwo\nth\xe9 end\nfour\n")  # latin-1
    with raises(ValueError, path, "line 3", "UTF-8"):
        task(path).load()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"data": [\n{"paragraphs": []},\noops\n]}', 3),
        ('{"data":\n[{"paragraphs": [', 2),
        ("id,dialogue,summary\n", 1),
    ],
)
def test_the_line_that_is_not_json_is_named(content, line, tmp_path):
    path = write(tmp_path / "dev.json", content)
    with raises(ValueError, path, f"line {line}:", "not JSON"):
        Squad(path).load()


GOOD = paragraph()
OTHER_SHAPES = {
    "a list": ([GOOD], "top level"),
    "a number": (3, "top level"),
    "no data": ({"version": "1.1"}, "top level"),
    "data is null": ({"data": None}, "top level"),
    "no qas": ({"data": [{"paragraphs": [GOOD, {"context": "c"}]}]}, "data[0].paragraphs[1]:"),
    "no context": (
        {"data": [{"paragraphs": [GOOD]}, {"paragraphs": [{"qas": GOOD["qas"]}]}]},
        "data[1].paragraphs[0].qas[0]",
    ),
    "context is null": ({"data": [{"paragraphs": [paragraph(context=None)]}]}, "data[0].paragraphs[0].qas[0]"),
    "question is a number": (
        {"data": [{"paragraphs": [GOOD, paragraph(question=3)]}]},
        "data[0].paragraphs[1].qas[0]",
    ),
    "no answers": ({"data": [{"paragraphs": [paragraph(answers=())]}]}, "data[0].paragraphs[0].qas[0]"),
    "answer is null": ({"data": [{"paragraphs": [paragraph(answers=["a", None])]}]}, "paragraphs[0].qas[0]"),
    "answers of the hub's form": (
        {"data": [{"paragraphs": [{"context": "c", "qas": [*GOOD["qas"], {"answers": {"text": ["a"]}}]}]}]},
        "data[0].paragraphs[0].qas[1]",
    ),
}


@pytest.mark.parametrize(("content", "place"), OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_the_place_that_has_not_squads_shape_is_named(content, place, tmp_path):
    path = write(tmp_path / "dev.json", json.dumps(content))
    with raises(ValueError, path, place):
        Squad(path).load()


def test_the_article_without_paragraphs_is_named(tmp_path):
    path = write(tmp_path / "dev.json", json.dumps({"data": [{"paragraphs": [GOOD]}, {"title": "t"}]}))
    with raises(ValueError, path, "data[1]"):
        Squad(path).load()


@pytest.mark.parametrize("content", [{"data": []}, {"data": [{"paragraphs": []}]}], ids=str)
def test_a_squad_file_without_questions_is_refused(content, tmp_path):
    path = write(tmp_path / "dev.json", json.dumps(content))
    with raises(ValueError, path, "no questions"):
        Squad(path).load()


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


# Bad fields


@pytest.mark.parametrize("fields", [{"source_path": "a.en"}, {"target_path": "a.en"}], ids=str)
def test_one_path_of_two_is_refused(fields):
    with raises(ValueError, "source_path", "target_path"):
        Translation(**fields)
    with raises(ValueError, "a.en"):
        make_task("translation", **fields)


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


# Real files


def test_xquad_has_its_1190_questions(shared):
    examples = Squad(str(shared / "data/squad/xquad.en.json")).load()
    assert len(examples) == len({example.id for example in examples}) == 1190
    assert examples[0].prompt.startswith(
        "question: How many points did the Panthers defense surrender? context: The Pan"
    )
    assert examples[0].references == ("308",)


def test_samsums_test_file_has_its_800_dialogues(shared):
    examples = Samsum(str(shared / "data/samsum/test.csv")).load()
    assert len(examples) == 800
    assert examples[0].id == "13862856"
    assert examples[0].prompt.startswith(
        "summarize: Hannah: Hey, do you have Betty's number?\nAmanda: Lemme check\n"
    )


def test_multi30ks_test_files_have_their_1000_pairs(shared):
    paths = [str(shared / f"data/multi30k/test_2016_flickr.{language}") for language in ("en", "de")]
    examples = Translation(*paths).load()
    assert len(examples) == 1000
    assert examples[0] == Example(
        "0",
        "translate English to German: A man in an orange hat starring at something.",
        ("Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",),
    )


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "test.csv", "\ufeffid,dialogue,summary\n1,a: b,s\n")
    assert Samsum(path).load() == [Example("1", "summarize: a: b", ("s",))]


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n', "has no column 'title'"),
        ("rows.jsonl", '{"text": "a", "title": " "}\n', "row 1: source or target is no text or is empty"),
        ("rows.jsonl", '{"text": "a", "title": \n', "rows.jsonl cannot be read as .jsonl"),
        ("rows.csv", "text,title\n", "rows.csv cannot be read as .csv: .* no data"),
        ("rows.csv", "", "rows.csv is empty"),
        ("rows.xml", "<a/>", "allowed endings: .json, .jsonl, .csv, .tsv"),
    ],
)
def test_text_to_text_names_what_is_wrong_with_a_file(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        make_task("text_to_text", path=str(tmp_path / name), **COLUMNS).load()


def test_text_to_text_needs_one_source_of_rows():
    with pytest.raises(ValueError, match="path is None and dataset None; allowed: one of the two"):
        make_task("text_to_text")
    with pytest.raises(FileNotFoundError, match=r"no data file missing\.csv"):
        make_task("text_to_text", path="missing.csv").load()
