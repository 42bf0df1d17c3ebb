"""What a checkpoint's generation_config.json says of decoding, where the user says nothing.

Its token ids are in `T5Config`. Some of its other fields have a counterpart in `DecodeConfig`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.policy import check_integer
from dvp_jax.t5.config import GENERATION_FILE

_OTHERS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "penalty_alpha": None,
    "stop_strings": None,
    "max_time": None,
}
"""Fields that change what transformers generates and have no counterpart, with the value that changes nothing."""
_OTHERS_OF_SAMPLING: dict[str, Any] = {"typical_p": 1.0, "min_p": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def with_generation_config(
    cfg: DecodeConfig, generation: Mapping[str, Any], given: Collection[str] = ()
) -> DecodeConfig:
    """A config whose fields are those of a generation_config.json, but for those that the user gave.

    A warning of one line names the fields that it sets, and those that are not supported.

    Args:
        cfg: with all fields.
        generation: fields of the file.
        given: names of the fields of cfg that stay.

    Raises:
        ValueError: the file has an impossible value, or one that does not fit those that the user gave.
    """
    try:
        found = _found(generation)
        changes = {name: value for name, value in found.items() if name not in given}
        changed = dataclasses.replace(cfg, **changes)
    except ValueError as error:
        raise ValueError(f"{GENERATION_FILE}: {error}") from None
    unused = set() if changed.samples else {"top_k", "top_p"}
    parts = {
        "taken from": {n: v for n, v in changes.items() if n not in unused and v != getattr(cfg, n)},
        "not supported in": _not_supported(generation, changed.samples),
    }
    said = [
        f"{what} {GENERATION_FILE}: {', '.join(f'{name} {value}' for name, value in values.items())}"
        for what, values in parts.items()
        if values
    ]
    if said:
        warnings.warn("; ".join(said), stacklevel=3)
    return changed


def _found(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DecodeConfig` that a file has."""
    fields = {name: value for name, value in generation.items() if value is not None}
    names = ("max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "forced_bos_token_id")
    found = {name: fields[name] for name in names if name in fields}
    for length in ("max_length", "min_length"):  # with the start token
        name = length.replace("length", "new_tokens")
        if length in fields and name not in fields:
            check_integer(length, fields[length], 0, None)
            found[name] = max(fields[length] - 1, 0)
    if fields.get("do_sample"):
        found["temperature"] = fields.get("temperature", 1.0)
        found["top_k"] = fields.get("top_k", 50) or None  # as transformers has it
        found["top_p"] = fields.get("top_p")
    return found


def _not_supported(generation: Mapping[str, Any], samples: bool) -> dict[str, Any]:
    neutral = {**_OTHERS, **(_OTHERS_OF_SAMPLING if samples else {})}
    return {
        name: generation[name]
        for name, value in neutral.items()
        if name in generation and generation[name] not in (None, value, [], {})
    }
