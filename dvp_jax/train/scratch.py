"""New models: a tokenizer trained on given texts, and random parameters."""

from __future__ import annotations

import io
import random
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
"""A tokenizer is trained on at most so many texts. More take minutes and change little.

They are drawn at random: of prompts and references in turn, every second text would be of one language.
"""

_DIGIT_AND_MARK = re.compile(r"(?<=\d)(?=[^\w\s])|(?<=[^\w\s])(?=\d)")
_APART = "\ue000"
"""Put between a number and a punctuation mark in the training texts, so that no piece holds both.

To SentencePiece both are of one script. Without this, "1901" at the end of a sentence and "1901" within it would
be different pieces.
"""


def new_model(shape: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Model:
    """Makes a model with random parameters.

    Args:
        shape: fields of `T5Config`. Without vocab_size, it is the tokenizer's.
        tokenizer: the model's tokenizer.
        seed: decides the parameters.

    Raises:
        ValueError: an unknown field, an impossible value, or a vocabulary smaller than the tokenizer's.
    """
    try:
        config = T5Config(**{"vocab_size": len(tokenizer), **shape})
    except TypeError as error:
        raise ValueError(f"shape: {error}") from None
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"vocab_size is {config.vocab_size}; allowed: at least the tokenizer's, {len(tokenizer)}")
    return Model(config, init_params(config, jax.random.key(seed)), tokenizer)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Trains a tokenizer as T5 has, a unigram model of SentencePiece. The same texts give the same tokenizer.

    Args:
        texts: sentences or paragraphs. Of more than MAX_TEXTS, so many are drawn.
        vocab_size: the number of pieces, including padding (id 0), end (1) and unknown (2).

    Raises:
        ValueError: no texts, or too few for so many pieces.
    """
    if not texts:
        raise ValueError("texts is empty; allowed: at least one")
    if len(texts) > MAX_TEXTS:
        texts = random.Random(0).sample(texts, MAX_TEXTS)
    import sentencepiece
    from transformers import T5Tokenizer

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(_DIGIT_AND_MARK.sub(_APART, text) for text in texts),
            pretokenization_delimiter=_APART,
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=1 << 20,  # by default it skips long prompts, with letters that no other has
            num_threads=1,  # the sums of several threads differ from run to run
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"vocab_size is {vocab_size}, which the texts do not allow: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(model.getvalue())
        return T5Tokenizer.from_pretrained(folder, extra_ids=0)
