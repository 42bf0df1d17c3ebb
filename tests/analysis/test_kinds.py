"""Kinds of token, by cases written by hand."""

import numpy as np
import pytest

from dvp_jax.analysis.kinds import frequency_deciles, letter_cases, marks_words, position_groups, token_kinds

SHORT = {"s": "start of a word", "i": "inside of a word", "n": "number", "p": "punctuation"}
SHORT |= {"e": "end of text", "x": "special"}


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        ("▁The ▁house", "ss"),
        ("▁Ann a ▁paid ▁250 ▁p ound s , ▁on ▁3 ▁May . </s>", "sisnsiipsnspe"),
        ("▁ ( L ee ds ) .", "spsiipp"),  # the bracket takes the mark: the word behind it starts all the same
        ("▁Who ' s", "sps"),  # what follows an apostrophe starts anew
        ("▁3 rd ▁1,000 . 5 ▁B 2", "ninpnsn"),
        ("▁ Ç a", "sii"),  # a bare mark begins the word
        ("▁ 7", "sn"),
        ("▁ह िं दी", "sii"),  # letters with combining marks
        ("▁naï ve", "si"),
        ("▁½ ▁- ▁€", "npp"),
        ("▁a <unk> b </s>", "sxse"),
        ("a", "s"),  # a text need not begin with a mark
        ("", ""),
    ],
)
def test_pieces_are_of_the_kind_that_a_reader_would_say(pieces, kinds):
    expected = [SHORT[letter] for letter in kinds]
    assert token_kinds(pieces.split(), special=["<pad>", "<unk>", "</s>"]) == expected


def test_pieces_of_a_tokenizer_without_marks_are_whole_words():
    assert token_kinds(["dada", "dade", "."], marked=False) == [
        "start of a word",
        "start of a word",
        "punctuation",
    ]


@pytest.mark.parametrize(("vocabulary", "marked"), [(["<pad>", "▁a", "b"], True), (["<pad>", "a", "b"], False)])
def test_a_tokenizer_marks_words_where_a_piece_has_the_mark(vocabulary, marked):
    class Tokenizer:
        def get_vocab(self):
            return {piece: index for index, piece in enumerate(vocabulary)}

    assert marks_words(Tokenizer()) is marked


def test_letters_are_capitalised_or_not_in_words_only():
    pieces = ["▁Ann", "a", "▁house", "Ö", "▁250", ".", "</s>"]
    kinds = token_kinds(pieces)
    yes, no = "capitalised", "not capitalised"
    assert letter_cases(pieces, kinds) == [yes, no, no, yes, "", "", ""]


def test_deciles_cut_the_running_text_into_tenths():
    # Twenty tokens that occur five times each: two make a tenth. Equally common ones go by id.
    tokens = np.repeat(np.arange(20), 5)
    shuffled = np.random.default_rng(0).permutation(tokens)
    np.testing.assert_array_equal(frequency_deciles(shuffled), shuffled // 2 + 1)


def test_a_token_stands_in_the_decile_of_its_middle():
    # 60 of the first (its middle at 30 of 100), 30 of the second (at 75), ten once each (at 90.5 to 99.5).
    tokens = np.array([7] * 60 + [3] * 30 + list(range(100, 110)))
    assert frequency_deciles(tokens).tolist() == [4] * 60 + [8] * 30 + [10] * 10


def test_groups_of_positions_double():
    groups = position_groups(np.arange(16))
    assert groups == ["1"] + ["2 to 3"] * 2 + ["4 to 7"] * 4 + ["8 to 15"] * 8 + ["16 to 31"]
