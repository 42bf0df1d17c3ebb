"""Groups of tokens: by kind, letter case, frequency and position."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_MARK = "▁"
"""SentencePiece writes it for the space before a word."""

KINDS = ("start of a word", "inside of a word", "number", "punctuation", "end of text", "special")
DECILES = 10


def marks_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the pieces of a tokenizer mark the start of a word. If not, `token_kinds` takes each for a word."""
    return any(piece.startswith(WORD_MARK) for piece in tokenizer.get_vocab())


def token_kinds(
    pieces: Sequence[str], *, marked: bool = True, end: str = "</s>", special: Sequence[str] = ()
) -> list[str]:
    """Finds the kind of each token of one text, one of `KINDS`.

    A number has digits and no letters. Punctuation has neither. A piece with letters is the inside of a word if it
    has no word mark and follows a letter, a digit or a bare word mark. Otherwise it is the start of a word, also
    after a bracket, where SentencePiece writes no mark.

    Args:
        pieces: the tokens of the text, as the tokenizer writes them.
        marked: whether pieces mark the start of a word, from `marks_words`.
        end: the end token.
        special: other tokens that are not text.
    """
    kinds = []
    previous = ""
    for piece in pieces:
        text = piece.removeprefix(WORD_MARK)
        classes = {unicodedata.category(character)[0] for character in text}
        joined = marked and text == piece and (previous == WORD_MARK or _is_word(previous[-1:]))
        if piece == end:
            kinds.append("end of text")
        elif piece in special:
            kinds.append("special")
        elif "L" in classes or "M" in classes or not text:
            kinds.append("inside of a word" if joined else "start of a word")
        else:
            kinds.append("number" if "N" in classes else "punctuation")
        previous = piece
    return kinds


def _is_word(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN"


def letter_cases(pieces: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Returns "capitalised" or "not capitalised" for pieces of words, by their first letter, and "" for others."""
    cases = []
    for piece, kind in zip(pieces, kinds, strict=True):
        first = piece.removeprefix(WORD_MARK)[:1]
        in_word = kind in ("start of a word", "inside of a word")
        cases.append(("capitalised" if first.isupper() else "not capitalised") if in_word else "")
    return cases


def frequency_deciles(tokens: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """Groups tokens by frequency. Decile 1 has the most frequent tokens, which make up a tenth of all texts.

    The distinct ids are sorted by falling count, equal counts by rising id. The sorted counts divide the running
    text into intervals, one for each id. The decile of an id is the one that the middle of its interval is in, so
    that every id has one decile.

    Args:
        tokens: ids of the tokens of all texts.

    Returns:
        The decile of each token, from 1 to 10.
    """
    _, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    middles = np.empty(len(counts))
    middles[order] = np.cumsum(counts[order]) - counts[order] / 2
    return (DECILES * middles / len(tokens)).astype(int)[inverse] + 1


def position_groups(positions: Int[np.ndarray, " tokens"]) -> list[str]:
    """Groups positions, counted from 1, in groups that double in size: "1", "2 to 3", "4 to 7" and so on.

    Args:
        positions: position of each token in its text, from 0.
    """
    bits = [int(position + 1).bit_length() for position in positions]
    return ["1" if bit == 1 else f"{1 << (bit - 1)} to {(1 << bit) - 1}" for bit in bits]
