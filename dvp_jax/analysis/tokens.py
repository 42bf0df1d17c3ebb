"""The table that all analyses read: every token of many texts, and what every depth would produce there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from dvp_jax.data.task import Example, Task
from dvp_jax.decode.api import decode, encode
from dvp_jax.decode.cache import Encoded
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import (
    SOURCE_BUCKETS,
    GeneratedText,
    length_bucket,
    pad_rows,
    source_batches,
    to_text,
    token_rows,
    tokenize,
)
from dvp_jax.decode.trace import trace
from dvp_jax.t5.load import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FULL_VOCABULARY = {"full": DecodeConfig(method="calm", min_exit_layer=1)}
"""For `token_table`: reads the full vocabulary at every depth."""


@dataclasses.dataclass(frozen=True)
class DepthReadings:
    """What each depth would produce at each token."""

    candidates: Int[np.ndarray, "tokens depths"]  # token ids
    confidences: Float[np.ndarray, "tokens depths"]  # in the candidates


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The tokens of texts, one row each, text after text. Depth l is in column l - 1.

    Attributes:
        text: index of the text that the token is in.
        position: position of the token in its text, from 0.
        token: id of the token.
        ranks: rank of that id in the full vocabulary at each depth, 0 for the likeliest.
        readings: what each depth would produce, for each config by name.
    """

    text: Int[np.ndarray, " tokens"]
    position: Int[np.ndarray, " tokens"]
    token: Int[np.ndarray, " tokens"]
    ranks: Int[np.ndarray, "tokens depths"]
    readings: dict[str, DepthReadings]

    def agrees(self, name: str) -> Bool[np.ndarray, "tokens depths"]:
        """Whether each depth would produce the token of the text with the config `name`."""
        return self.readings[name].candidates == self.token[:, None]


@dataclasses.dataclass(frozen=True)
class Sources:
    """The examples of a task, tokenized.

    Attributes:
        examples: the examples.
        tokenizer: the model's tokenizer.
        input_ids: ids of the prompts, padded on the right.
        attention_mask: False at padding.
        batch_size: how many rows run together.
    """

    examples: list[Example]
    tokenizer: PreTrainedTokenizerBase
    input_ids: Int[np.ndarray, "examples source"]
    attention_mask: Bool[np.ndarray, "examples source"]
    batch_size: int

    def encoded(self, model: Model, description: str) -> Iterator[tuple[slice, Encoded]]:
        """Encodes batch after batch and shows progress.

        Args:
            model: gives the encoder.
            description: text before the progress bar.

        Yields:
            The slice of examples in the batch, and their encoding.
        """
        with tqdm(total=len(self.examples), desc=description, unit="example") as bar:
            for rows, *source in source_batches(self.input_ids, self.attention_mask, self.batch_size):
                yield rows, encode(model, *source)
                bar.update(len(source[0]))


def load_sources(model: Model, task: Task, *, batch_size: int = 1, limit: int | None = None) -> Sources:
    """Reads and tokenizes the examples of a task.

    Args:
        model: a model with a tokenizer.
        task: gives the examples.
        batch_size: how many rows run together; changes no result.
        limit: read the first `limit` examples only; None for all.

    Raises:
        ValueError: batch_size or limit below 1, bad data, or a model without a tokenizer.
        FileNotFoundError: a data file is missing.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; allowed: at least 1")
    examples = task.load()[:limit]
    ids, mask = tokenize(model, [example.prompt for example in examples], task.max_source_length)
    assert model.tokenizer is not None  # `tokenize` used it
    return Sources(examples, model.tokenizer, ids, mask, batch_size)


def decode_texts(model: Model, sources: Sources, cfg: DecodeConfig) -> list[GeneratedText]:
    """Generates a text for every example.

    Raises:
        ValueError: cfg does not fit the model.
    """
    texts = []
    for rows, encoded in sources.encoded(model, f"decoding, {cfg.name}"):
        out = jax.tree.map(np.asarray, decode(model, encoded, cfg))
        texts += [to_text(model, out, row) for row in range(rows.stop - rows.start)]
    return texts


def full_model_texts(model: Model, sources: Sources, max_new_tokens: int) -> list[list[int]]:
    """Generates a text for every example with the full model. Returns the token ids."""
    texts = decode_texts(model, sources, DecodeConfig(method="full", max_new_tokens=max_new_tokens))
    return [text.tokens for text in texts]


def reference_texts(sources: Sources, max_length: int) -> list[list[int]]:
    """Tokenizes the first reference of every example: at most `max_length` ids, the end token included."""
    references = [example.references[0] for example in sources.examples]
    return token_rows(sources.tokenizer, references, max_length, "references")


def token_table(
    model: Model, sources: Sources, texts: Sequence[list[int]], cfgs: Mapping[str, DecodeConfig]
) -> TokenTable:
    """Reads given texts at every depth of the full model. No layer is skipped.

    Args:
        model: from `load_model`.
        sources: from `load_sources`.
        texts: token ids of a text for each source, at least one id each.
        cfgs: how to read each depth, by name; at least one.

    Raises:
        ValueError: a cfg does not fit the model, or logits are not finite.
    """
    layers = model.config.num_decoder_layers
    ranks, candidates, confidences = [], {name: [] for name in cfgs}, {name: [] for name in cfgs}  # type: ignore[var-annotated]
    for rows, encoded in sources.encoded(model, "tracing"):
        batch = texts[rows]
        length = length_bucket(max(map(len, batch)), SOURCE_BUCKETS)
        tokens, real = pad_rows(batch, len(batch), length, model.config.pad_token_id)
        for name, cfg in cfgs.items():
            traced = jax.tree.map(np.asarray, trace(model, encoded, tokens, np.full_like(tokens, layers), cfg))
            _check_finite(traced.confidences, real, sources.examples[rows])
            candidates[name].append(traced.candidates[real])  # (tokens of the batch, depths)
            confidences[name].append(traced.confidences[real])
        ranks.append(traced.ranks[real])  # equal for all configs
    lengths = [len(text) for text in texts]
    return TokenTable(
        text=np.repeat(np.arange(len(texts)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        token=np.concatenate([np.asarray(text) for text in texts]),
        ranks=np.concatenate(ranks),
        readings={
            name: DepthReadings(np.concatenate(candidates[name]), np.concatenate(confidences[name]))
            for name in cfgs
        },
    )


def _check_finite(
    confidences: Float[np.ndarray, "rows tokens depths"],
    real: Bool[np.ndarray, "rows tokens"],
    examples: list[Example],
) -> None:
    """Raises ValueError if a confidence was read from logits that are not finite."""
    wrong = np.argwhere(np.isnan(confidences) & real[:, :, None])
    if len(wrong):
        row, token, depth = wrong[0]
        raise ValueError(
            f"example {examples[row].id}: logits of token {token + 1} at depth {depth + 1} are not finite; "
            "allowed: a model that does not overflow"
        )
