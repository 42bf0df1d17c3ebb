"""Models that start from nothing: a tokenizer of T5's kind, trained on the texts at hand, and random weights."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import init_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_TEXTS = 50_000
"""What a tokenizer is trained on at most: more takes minutes and changes little."""


_DIGIT_AND_MARK = re.compile(r"(?<=\d)(?=[^\w\s])|(?<=[^\w\s])(?=\d)")
_APART = "\ue000"
"""Keeps a number and the mark after it apart in training, since to SentencePiece both are of one script: else 1901
at the end of a sentence would be another piece than 1901 within."""


def new_model(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Model:
    """A model with random parameters.

    Args:
        shape: fields of `T5Config`; vocab_size is the tokenizer's where it is not given.
        tokenizer: of the model.
        seed: of the parameters.

    Raises:
        ValueError: a field that there is not, an impossible value, or a vocabulary smaller than the tokenizer's.
    """
    try:
        config = T5Config(**{"vocab_size": len(tokenizer), **shape})
    except TypeError as error:
        raise ValueError(f"shape: {error}") from None
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size is {config.vocab_size}; allowed: at least the tokenizer's, {len(tokenizer)}")
    return Model(config, init_params(config, jax.random.key(seed)), tokenizer)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Trains SentencePiece's unigram model. The same texts give the same tokenizer.

    Args:
        texts: one a sentence or a paragraph; of more than MAX_TEXTS, as many at even distances.
        vocab_size: pieces, with padding (0), end (1) and unknown (2).

    Raises:
        ValueError: no texts, or too few for so many pieces.
    """
    if not texts:
        raise ValueError("texts is empty; allowed: at least one")
    import sentencepiece
    from transformers import T5Tokenizer

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                _DIGIT_AND_MARK.sub(_APART, text) for text in texts[:: -(-len(texts) // MAX_TEXTS)]
            ),
            pretokenization_delimiter=_APART,
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=1 << 20,  # else it skips long prompts, and their letters
            num_threads=1,  # sums of several threads differ from run to run
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"vocab_size is {vocab_size}, which the texts do not allow: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(model.getvalue())
        return T5Tokenizer.from_pretrained(folder, extra_ids=0)
