"""What a checkpoint's generation_config.json says of decoding, where the user says nothing.

Its token ids are in `T5Config`. Some of its other fields have a counterpart in `DecodeConfig`. Where there is no
such file, config.json may have the fields.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.policy import check_integer
from dvp_jax.t5.config import GENERATION_FILE

_OF_LENGTH = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Fields that change nothing where `do_sample` is false."""
_SAME_TEXT = re.compile(
    "transformers_version|_from_model_config|(pad|bos|eos|decoder_start)_token_id|early_stopping|length_penalty|renormalize_logits"
    "|remove_invalid_values|output_.*|return_dict.*|.*cache.*|.*compile.*|low_memory|prefill_.*|continuous_.*"
    "|is_assistant|num_assistant_.*|assistant_(confidence|early|look).*|target_lookbehind|prompt_lookup_.*"
    "|max_matching_.*|use_mtp|speculation_type"
)
"""Fields that do not change a text of one beam: token ids, caches, drafts, what is returned."""
_NO_EFFECT: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "typical_p": 1,
}
"""The value with which a field changes nothing. Of others it is null, false, 0 or empty."""


def with_generation_config(
    cfg: DecodeConfig, generation: Mapping[str, Any], given: Collection[str] = ()
) -> DecodeConfig:
    """A config whose fields are those of a checkpoint's generation config, but for those that the user gave.

    A warning of one line names the fields that it sets, and those that are not supported.

    Args:
        cfg: with all fields.
        generation: fields of the file (`Model.generation_config`).
        given: names of the fields of cfg that stay.

    Raises:
        ValueError: the file has an impossible value, or one that does not fit those that the user gave.
    """
    file = "config.json" if generation.get("_from_model_config") else GENERATION_FILE
    try:
        found = _found(generation)
        changes = {name: value for name, value in found.items() if name not in given}
        changed = dataclasses.replace(cfg, **changes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    unused = set() if changed.samples else {"top_k", "top_p"}
    parts = {
        "taken from": {n: v for n, v in changes.items() if n not in unused and v != getattr(cfg, n)},
        "not supported in": _not_supported(generation, found),
    }
    said = [
        f"{what} {file}: {', '.join(f'{name} {value}' for name, value in values.items())}"
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
    if not isinstance(fields.get("do_sample", False), bool):
        raise ValueError(f"do_sample is {fields['do_sample']!r}; allowed: true, false")
    if fields.get("do_sample"):
        found["temperature"] = fields.get("temperature", 1.0)
        found["top_k"] = fields.get("top_k", 50) or None  # as transformers has it
        found["top_p"] = fields.get("top_p")
    return found


def _not_supported(generation: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that change what transformers generates and have no counterpart in `DecodeConfig`."""
    honoured = {*found, *_OF_LENGTH, "do_sample", *(() if "temperature" in found else _OF_SAMPLING)}
    return {
        name: value
        for name, value in generation.items()
        if value and value != _NO_EFFECT.get(name) and name not in honoured and not _SAME_TEXT.fullmatch(name)
    }
