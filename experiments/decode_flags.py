"""The fields of `DecodeConfig` as flags, with their descriptions."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from dvp_jax.decode.config import DecodeConfig, parse_exit_depths
from dvp_jax.decode.generation_config import with_generation_config

flags.disclaim_key_flags()  # --help shows them among the flags of the launcher


def define_decode_flags(*, without: Sequence[str] = (), **defaults: Any) -> Callable[..., DecodeConfig]:
    """Defines a flag for each field.

    Args:
        without: fields that get no flag.
        **defaults: where they differ from those of `DecodeConfig`.

    Returns:
        What makes the config, once the flags are parsed. It takes the fields of a checkpoint's
        generation_config.json, which count where a flag is not given, or None. It raises ValueError for an
        impossible value.
    """
    descriptions, fields = _descriptions(), [f for f in dataclasses.fields(DecodeConfig) if f.name not in without]
    for field in fields:
        default, text = defaults.get(field.name, field.default), descriptions[field.name]
        if field.name == "exit_depths":
            flags.DEFINE_string(field.name, default, f"{text} For example 4 for every fourth, 4,8,12 for these.")
        elif field.name == "thresholds_per_depth":
            flags.DEFINE_list(field.name, default, text)
        elif field.type in ("int", "int | None"):
            flags.DEFINE(_Integer(), field.name, default, text)
        elif field.type in ("float", "float | None"):
            flags.DEFINE_float(field.name, default, text)
        elif field.type == "bool | None":
            flags.DEFINE_bool(field.name, default, text)
        else:  # `DecodeConfig` knows which names are allowed
            flags.DEFINE_string(field.name, default, text)

    def config(generation: Mapping[str, Any] | None = None) -> DecodeConfig:
        values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in fields}
        values["exit_depths"] = parse_exit_depths(values["exit_depths"])
        if (thresholds := values.get("thresholds_per_depth")) is not None:
            try:
                values["thresholds_per_depth"] = tuple(map(float, thresholds))
            except ValueError:
                raise ValueError(
                    f"thresholds_per_depth is {','.join(thresholds)}; allowed: numbers from 0 to 1, one a depth"
                ) from None
        cfg = DecodeConfig(**values)
        given = [field.name for field in fields if flags.FLAGS[field.name].present]
        return cfg if generation is None else with_generation_config(cfg, generation, given)

    return config


class _Integer(flags.IntegerParser):
    """An integer, or "none" for fields that may be None."""

    def parse(self, argument: str | int | None) -> Any:
        return None if argument is None or str(argument).lower() == "none" else super().parse(argument)


def _descriptions() -> dict[str, str]:
    """What the docstring of `DecodeConfig` says of each field, on one line."""
    text = inspect.cleandoc(DecodeConfig.__doc__ or "").split("Attributes:\n")[1].split("\nRaises:")[0]
    parts = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)[1:]
    return {name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)}
