"""Failures of pruning, counted in texts made by hand."""

import numpy as np
import pytest

import dvp_jax
from dvp_jax.analysis.failures import failure_content, failure_report, outcome, token_groups
from dvp_jax.analysis.tokens import Sources, TokenTable
from dvp_jax.data import Example
from dvp_jax.decode.text import GeneratedText, decode_tokens
from dvp_jax.report.table import Section

PIECES = ["<pad>", "</s>", "▁The", "▁Ann", "a", "▁250", ".", "▁cat"]


class Tokenizer:
    """The methods of a tokenizer that the reports use."""

    eos_token = "</s>"
    all_special_ids = (0, 1)

    def get_vocab(self):
        return {piece: index for index, piece in enumerate(PIECES)}

    def convert_ids_to_tokens(self, ids):
        return PIECES[ids] if isinstance(ids, int) else [PIECES[each] for each in ids]

    def decode(self, ids, skip_special_tokens=False):
        pieces = [PIECES[each] for each in ids if not (skip_special_tokens and each < 2)]
        return "".join(pieces).replace("▁", " ").strip()


FULL = [[2, 3, 4, 6, 1], [3, 4, 5, 1], [7, 1]]
"""The Anna. / Anna 250 / cat"""
RANKS = [[0, 9, 0, 0, 0], [12, 0, 8, 0], [7, 0]]
"""At p = 1. With K = 8 the tokens of ranks 8, 9 and 12 are lost, the one of rank 7 is not."""
PRUNED = [[2, 7, 1], [3, 4, 5, 1], [7, 1]]
"""The cat / Anna 250 / cat"""


def table_of(texts, ranks):
    """The table of texts with given ranks at p = 1, for a model of two layers."""
    ranks = np.concatenate(ranks)
    return TokenTable(
        text=np.repeat(np.arange(len(texts)), list(map(len, texts))),
        position=np.concatenate([np.arange(len(text)) for text in texts]),
        token=np.concatenate(texts),
        ranks=np.stack([ranks, np.zeros_like(ranks)], axis=1),
        readings={},
    )


def report_of(full, ranks, pruned):
    texts = []
    for ids in pruned:
        text = decode_tokens(Tokenizer(), ids, skip_special_tokens=True)
        texts.append(GeneratedText(text, ids, [1 + i % 2 for i in range(len(ids))], [0.5] * len(ids), [], 0))
    cfg = dvp_jax.DecodeConfig(prune_layer=1, min_exit_layer=1, prune_size=8)
    examples = [Example(f"id {i}", "prompt", ("reference",)) for i in range(len(full))]
    return failure_report(table_of(full, ranks), cfg, texts, Sources(examples, Tokenizer(), None, None, 1))


@pytest.fixture(scope="module")
def report():
    return report_of(FULL, RANKS, PRUNED)


def rate_of(report, by, group):
    (row,) = [row for row in report["rates"] if (row["by"], row["group"]) == (by, group)]
    return row["failures"], row["tokens"]


def test_failures_are_tokens_that_rank_beyond_the_kept(report):
    assert [(case["id"], case["position"], case["rank"]) for case in report["cases"]] == [
        ("id 0", 1, 10),
        ("id 1", 0, 13),
        ("id 1", 2, 9),
    ]
    assert (report["failures"], report["tokens"], report["texts"]) == (3, 11, 3)
    assert (report["prune_layer"], report["prune_size"]) == (1, 8)


def test_rates_are_counted_for_each_kind(report):
    assert rate_of(report, "all", "all") == (3, 11)
    counts = {row["group"]: (row["failures"], row["tokens"]) for row in report["rates"] if row["by"] == "kind"}
    assert counts == {
        "start of a word": (2, 4),
        "inside of a word": (0, 2),
        "number": (1, 1),
        "punctuation": (0, 1),
        "end of text": (0, 3),
    }
    assert list(counts) == ["start of a word", "inside of a word", "number", "punctuation", "end of text"]
    assert rate_of(report, "letters", "capitalised") == (2, 3)
    assert rate_of(report, "letters", "not capitalised") == (0, 3)
    assert rate_of(report, "position", "1") == (1, 3)
    assert rate_of(report, "position", "2 to 3") == (2, 5)
    assert rate_of(report, "position", "4 to 7") == (0, 3)


def test_a_text_does_not_go_on_the_one_before_it():
    texts = [[3, 4], [4, 1]]  # the first was cut off in a word
    groups = token_groups(table_of(texts, texts), Tokenizer())
    assert groups["kind"] == ["start of a word", "inside of a word", "start of a word", "end of text"]


def test_cases_show_the_last_dozen_tokens_before_them():
    text = [2] * 10 + [7] * 10
    (case,) = report_of([text], [[0] * 19 + [8]], [text])["cases"]
    assert case["before"].split() == ["The"] * 3 + ["cat"] * 9


def test_ids_that_the_tokenizer_has_no_piece_for_are_shown_as_ids():
    full, pruned = [2, 99, 7, 1], [2, 98, 7, 1]
    report = report_of([full], [[0, 8, 0, 0]], [pruned])
    (case,) = report["cases"]
    assert (case["token"], case["produced"], case["kind"]) == ("<id 99>", "<id 98>", "special")
    assert (case["full_text"], case["pruned_text"]) == ("The cat", "The cat")
    assert "| id 0 | The | <id 99> | 9 | <id 98> | 2 |" in Section("", failure_content(report, 1)).markdown()


def test_every_respect_counts_every_token_once(report):
    for by in ("kind", "frequency decile", "position"):
        rows = [row for row in report["rates"] if row["by"] == by]
        assert sum(row["tokens"] for row in rows) == 11 and sum(row["failures"] for row in rows) == 3
        if by != "kind":
            firsts = [int(row["group"].split()[0]) for row in rows]
            assert firsts == sorted(firsts)  # by size, not as words


def test_intervals_are_around_their_rates(report):
    for row in report["rates"]:
        assert row["rate"] == pytest.approx(row["failures"] / row["tokens"])
        assert 0 <= row["low"] <= row["rate"] <= row["high"] <= 1
        assert row["low"] < row["high"]


def test_cases_say_what_was_produced_instead(report):
    first, second, third = report["cases"]
    assert first["before"] == "The" and first["token"] == "▁Ann" and first["kind"] == "start of a word"
    assert (first["outcome"], first["produced"], first["exit_layer"]) == ("another token", "▁cat", 2)
    assert (first["full_text"], first["pruned_text"]) == ("The Anna.", "The cat")
    assert (second["outcome"], second["produced"], second["exit_layer"]) == ("the same token", "▁Ann", 1)
    assert (third["before"], third["token"], third["outcome"]) == ("Anna", "▁250", "the same token")
    assert report["outcomes"] == {"another token": 1, "the same token": 2, "already another text": 0}


@pytest.mark.parametrize(
    ("full", "pruned", "position", "expected"),
    [
        ([5, 6, 1], [5, 6, 1], 1, "the same token"),
        ([5, 6, 1], [5, 7, 1], 1, "another token"),
        ([5, 6, 1], [7, 6, 1], 1, "already another text"),  # equal tokens after different ones mean nothing
        ([5, 6, 1], [5, 1], 1, "another token"),
        ([5, 6, 1], [5, 1], 2, "already another text"),
        ([5, 6, 1], [7, 6, 1], 0, "another token"),
    ],
)
def test_an_outcome_is_read_where_the_texts_still_agree(full, pruned, position, expected):
    assert outcome(full, pruned, position) == expected


def test_the_table_shows_rates_outcomes_and_where_texts_part(report):
    table = Section("", failure_content(report, 10)).markdown()
    assert "| all | 3 | 11 | 27.27 |" in table
    assert "| kind: number | 1 | 1 | 100.00 |" in table
    assert "another token 1, the same token 2, already another text 0" in table
    assert table.splitlines()[-1] == "| id 0 | The | ▁Ann | 10 | ▁cat | 2 |"
    assert "id 0" not in Section("", failure_content(report, 0)).markdown()
