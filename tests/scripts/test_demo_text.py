import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvp_jax.data import make_task
from scripts.demo_text import COMPOSED, WORDS, samsum_rows, sentences, squad_json

_DIGEST = """
import hashlib, json
from scripts.demo_text import samsum_rows, squad_json
print(hashlib.sha256(json.dumps([squad_json(3, 40), samsum_rows(3, 40)]).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def paragraphs() -> list[dict[str, Any]]:
    return squad_json(2, 2000)["data"][0]["paragraphs"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return samsum_rows(2, 2000)


def _of_kind(kind: str, text: str) -> set[str]:
    """The values of the kind that occur in the text."""
    if kind in COMPOSED:
        parts = re.findall(r"{(\w+)}", COMPOSED[kind])
        pattern = re.sub(r"{\w+}", r"(\\w+)", COMPOSED[kind])
        found = [match.groups() for match in re.finditer(rf"(?=\b({pattern})\b)", text)]
        return {whole for whole, *words in found if all(a in WORDS[b] for a, b in zip(words, parts, strict=True))}
    found = re.findall(r"\d+ (?:crowns|metres)|\w+", text)
    return set(found) & set(WORDS[kind])


def test_every_process_draws_the_same():
    here = hashlib.sha256(json.dumps([squad_json(3, 40), samsum_rows(3, 40)]).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[2]
        there = subprocess.run([sys.executable, "-c", _DIGEST], cwd=root, env=env, capture_output=True, text=True)
        assert there.stdout.strip() == here, there.stderr
    assert squad_json(3, 40) != squad_json(4, 40)
    assert samsum_rows(3, 40) != samsum_rows(4, 40)


def test_answers_stand_where_they_say_and_are_short(paragraphs):
    for paragraph in paragraphs:
        assert 3 <= len(paragraph["qas"]) <= 4
        assert len({qa["question"] for qa in paragraph["qas"]}) == len(paragraph["qas"])
        for qa in paragraph["qas"]:
            (answer,) = qa["answers"]
            assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])
            assert 1 <= len(answer["text"].split()) <= 4
            assert not re.search(rf"\b{answer['text']}\b", qa["question"])


def with_distractor(paragraphs: list[dict[str, Any]]) -> list[bool]:
    """For each question whether its paragraph holds something else of the answer's kind."""
    kinds = [*COMPOSED, *(kind for kind in WORDS if kind != "product"), "product"]
    distracted = []
    for paragraph in paragraphs:
        context = paragraph["context"]
        for qa in paragraph["qas"]:
            text = qa["answers"][0]["text"]
            if text.split()[-1] in ("Bridge", "Festival", "Expedition", "Museum"):
                others = set(re.findall(rf"\w+ {text.split()[-1]}", context)) - {text}
            else:
                kind = next(kind for kind in kinds if _of_kind(kind, text) == {text})
                others = _of_kind(kind, context) - {text}
            distracted.append(bool(others))
    return distracted


def test_many_answers_have_a_distractor_of_their_kind(paragraphs):
    distracted = with_distractor(paragraphs)
    assert 0.2 < sum(distracted) / len(distracted) < 0.4


def test_the_docs_count_the_distractors_of_the_shipped_questions():
    root = Path(__file__).parents[2]
    shipped = json.loads((root / "dvp_jax" / "demo" / "squad_test.json").read_text(encoding="utf-8"))
    distracted = with_distractor(shipped["data"][0]["paragraphs"])
    docs = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"for {sum(distracted)} of the {len(distracted)} alone the paragraph holds something else" in docs


def test_two_entities_share_the_facts_out(paragraphs):
    for paragraph in paragraphs:
        units = [unit.removeprefix("The ").removeprefix("ship ") for unit in sentences(paragraph["context"])]
        names = [unit.split()[0] for unit in units]
        assert set(names) <= {*WORDS["brand"], *WORDS["first"]}
        assert len(set(names)) == 2 and min(map(names.count, names)) >= 2


def test_forbidden_sentences_are_not_drawn():
    def held(data: dict[str, Any]) -> set[str]:
        return {unit for paragraph in data["data"][0]["paragraphs"] for unit in sentences(paragraph["context"])}

    def said(rows: list[dict[str, str]]) -> set[str]:
        return {unit for row in rows for key in ("dialogue", "summary") for unit in sentences(row[key])}

    # With the same seed, all of the test's own text would be drawn first.
    test = held(squad_json(1, 60))
    assert test.isdisjoint(held(squad_json(1, 200, forbidden=test)))
    test = said(samsum_rows(1, 60))
    assert test.isdisjoint(said(samsum_rows(1, 200, forbidden=test)))


def test_forbidding_everything_is_an_error(monkeypatch):
    import scripts.demo_text as demo_text

    monkeypatch.setattr(demo_text, "_dialogue", lambda rng: ("Anna: Hi Bert!", "Anna greets Bert."))
    with pytest.raises(ValueError, match="forbid less"):
        samsum_rows(1, 1, forbidden={"Hi Bert!"})


def test_sentences():
    assert sentences("One came. Two went, too.") == ["One came.", "Two went, too."]
    assert sentences("Ann: Hi Bo. At 7:45?\nBo: Yes, Ann.") == ["Hi Bo. At 7:45?", "Yes, Ann."]


def test_names_are_many_and_of_one_kind_only(paragraphs, rows):
    names = [set(WORDS[kind]) for kind in ("first", "surname", "town", "brand")]
    assert sum(map(len, names)) == len(set.union(*names))
    for texts in ([paragraph["context"] for paragraph in paragraphs], [row["dialogue"] for row in rows]):
        assert len(set(re.findall(r"\w+", " ".join(texts))) & set.union(*names)) >= 1000


def test_lengths(paragraphs, rows):
    for paragraph in paragraphs:
        assert 5 <= len(sentences(paragraph["context"])) <= 6
        assert 25 <= len(paragraph["context"].split()) <= 45
    for row in rows:
        assert 4 <= len(sentences(row["dialogue"])) <= 6
        assert 35 <= len(row["dialogue"].split()) <= 60
        assert 10 <= len(row["summary"].split()) <= 22


def test_utterances_and_summaries_hardly_repeat(rows):
    for key in ("dialogue", "summary"):
        units = [unit for row in rows for unit in sentences(row[key])]
        assert len(set(units)) > 0.98 * len(units)


_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def test_summaries_work_out_prices_and_arrivals(rows):
    worked_out = 0
    for row in rows:
        if total := re.search(r"pay (\d+) crowns for (\w+) tickets", row["summary"]):
            each = re.search(r"(?:One costs|They are|they are|At) (\d+) crowns", row["dialogue"])
            assert int(total[1]) == int(each[1]) * (_HOURS.index(total[2]) + 1)
        elif arrival := re.search(r"in \w+ at (\w+) on", row["summary"]):
            leaves = re.search(r" at (\w+) on ", row["dialogue"])
            takes = re.search(r"(\w+) hours", row["dialogue"])
            hours = [_HOURS.index(found[1]) + 1 for found in (leaves, takes, arrival)]
            assert (hours[0] + hours[1] - hours[2]) % 12 == 0
        else:
            continue
        worked_out += 1
    assert worked_out > 100


def test_no_slot_is_left_and_sentences_begin_in_capitals(paragraphs, rows):
    for text in [paragraph["context"] for paragraph in paragraphs] + [row["dialogue"] for row in rows]:
        assert not re.search(r"[{}|]|  |\ba [aeiouAEIOU]", text), text
        assert not re.search(r"(?:^|[.!?:] )[a-z]", text), text


def test_the_tasks_read_both(tmp_path):
    data = squad_json(1, 10)
    (tmp_path / "squad.json").write_text(json.dumps(data))
    examples = make_task("squad", path=str(tmp_path / "squad.json")).load()
    assert len(examples) == sum(len(paragraph["qas"]) for paragraph in data["data"][0]["paragraphs"])

    rows = samsum_rows(1, 10)
    with open(tmp_path / "samsum.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "dialogue", "summary"])
        writer.writeheader()
        writer.writerows(rows)
    loaded = make_task("samsum", path=str(tmp_path / "samsum.csv")).load()
    assert [example.prompt for example in loaded] == [f"summarize: {row['dialogue']}" for row in rows]
