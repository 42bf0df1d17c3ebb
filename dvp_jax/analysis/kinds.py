"""Kinds of token, to see which ones pruning fails."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_MARK = "▁"
"""What SentencePiece writes for the space before a word."""

KINDS = ("start of a word", "inside of a word", "number", "punctuation", "end of text", "special")
DECILES = 10


def marks_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the pieces of a tokenizer show where a word starts; else each is taken as a whole word."""
    return any(piece.startswith(WORD_MARK) for piece in tokenizer.get_vocab())


def token_kinds(
    pieces: Sequence[str], *, marked: bool = True, end: str = "</s>", special: Sequence[str] = ()
) -> list[str]:
    """The kind of each token of one text, one of `KINDS`.

    A number has digits and no letters, punctuation neither. What has letters is the inside of a word where it
    follows a letter, a digit or a bare word mark without a word mark of its own, and the start of one elsewhere:
    also behind a bracket, where SentencePiece writes no mark.

    Args:
        pieces: of the text, in order, as the tokenizer writes them.
        marked: whether pieces show where a word starts, as `marks_words` says.
        end: the end token.
        special: other tokens that are no text.
    """
    kinds = []
    before = ""
    for piece in pieces:
        text = piece.removeprefix(WORD_MARK)
        classes = {unicodedata.category(character)[0] for character in text}
        joined = marked and text == piece and (before == WORD_MARK or _is_word(before[-1:]))
        if piece == end:
            kinds.append("end of text")
        elif piece in special:
            kinds.append("special")
        elif "L" in classes or "M" in classes or not text:
            kinds.append("inside of a word" if joined else "start of a word")
        else:
            kinds.append("number" if "N" in classes else "punctuation")
        before = piece
    return kinds


def _is_word(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN"


def letter_cases(pieces: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Of pieces of words "capitalised" (they begin with a capital) or "not capitalised"; of others ""."""
    cases = []
    for piece, kind in zip(pieces, kinds, strict=True):
        first = piece.removeprefix(WORD_MARK)[:1]
        in_word = kind in ("start of a word", "inside of a word")
        cases.append(("capitalised" if first.isupper() else "not capitalised") if in_word else "")
    return cases


def frequency_deciles(tokens: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """How common each token is among all of them: 1 the commonest tenth of the running text, 10 the rarest.

    Tokens are ordered from common to rare (of equally common ones the smaller id first) and laid end to end,
    each as long as it is common; its decile is the one that its middle falls into, so that a token is in one only.

    Args:
        tokens: ids of all texts.

    Returns:
        The decile of each.
    """
    _, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    middles = np.empty(len(counts))
    middles[order] = np.cumsum(counts[order]) - counts[order] / 2
    return (DECILES * middles / len(tokens)).astype(int)[inverse] + 1


def position_groups(positions: Int[np.ndarray, " tokens"]) -> list[str]:
    """Places in the text, counted from 1, in groups that double: "1", "2 to 3", "4 to 7" and so on.

    Args:
        positions: from 0.
    """
    bits = [int(position + 1).bit_length() for position in positions]
    return ["1" if bit == 1 else f"{1 << (bit - 1)} to {(1 << bit) - 1}" for bit in bits]
