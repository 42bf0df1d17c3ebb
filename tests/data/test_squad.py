"""SQuAD: prompts, references, bad files."""

import json
from pathlib import Path

import pytest

from dvp_jax.data import Example, Squad
from tests.data.helpers import raises, write


def paragraph(context="Oslo is a city.", key="q1", question="What is Oslo?", answers=("a city",)):
    answers = [{"text": text, "answer_start": 0} for text in answers]
    return {"context": context, "qas": [{"id": key, "question": question, "answers": answers}]}


def squad_json(*articles):
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": list(a)} for a in articles]})


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


def test_squad_rows_of_the_hub_become_examples(hub, tmp_path):
    answer = {"text": "1843", "answer_start": 0}
    hub.rows = [
        {"id": "56", "title": "t", "question": " Who?", "context": " Ada.", "answers": {"text": ["Ada", "A"]}},
        {"id": "57", "title": "t", "question": "When?", "context": "1843", "answers": [answer]},  # as in files
    ]
    assert Squad().load() == [
        Example("56", "question: Who? context: Ada.", ("Ada", "A")),
        Example("57", "question: When? context: 1843", ("1843",)),
    ]
    exported = write(tmp_path / "validation.jsonl", "".join(json.dumps(row) + "\n" for row in hub.rows))
    assert Squad(exported).load() == Squad().load()
    assert Squad(write(tmp_path / "validation.NDJSON", Path(exported).read_text())).load() == Squad().load()
    Squad(dataset="x/y", split="train").load()
    assert hub.asked == [("rajpurkar/squad", None, "validation")] * 3 + [("x/y", None, "train")]


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


def test_a_file_of_squad_2_says_so_and_names_its_question_without_answers(tmp_path):
    impossible = {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []}
    content = {"version": "v2.0", "data": [{"paragraphs": [{**GOOD, "qas": [*GOOD["qas"], impossible]}]}]}
    path = write(tmp_path / "dev.json", json.dumps(content))
    with raises(
        ValueError, f"{path}, data[0].paragraphs[0].qas[1] has no answers, as in SQuAD 2.0; allowed: SQuAD 1.1"
    ):
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


def test_xquad_has_its_1190_questions(shared):
    examples = Squad(str(shared / "data/squad/xquad.en.json")).load()
    assert len(examples) == len({example.id for example in examples}) == 1190
    assert examples[0].prompt.startswith(
        "question: How many points did the Panthers defense surrender? context: The Pan"
    )
    assert examples[0].references == ("308",)
