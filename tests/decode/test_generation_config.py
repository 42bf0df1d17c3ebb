"""What a checkpoint's generation_config.json says, where the user says nothing."""

import dataclasses
import re
import warnings

import pytest
import torch
import transformers

import dvp_jax
from dvp_jax.decode.generation_config import with_generation_config
from tests.decode.helpers import MODEL, lettered
from tests.models import both

CONFIG = dvp_jax.DecodeConfig()


def read(generation, cfg=CONFIG, given=()):
    """The fields that a file changes, and what is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        changed = with_generation_config(cfg, generation, given)
    before, after = dataclasses.asdict(cfg), dataclasses.asdict(changed)
    return {n: after[n] for n in after if after[n] != before[n]}, [str(warning.message) for warning in said]


@pytest.mark.parametrize(
    ("generation", "fields", "said"),
    [
        ({"eos_token_id": 1, "transformers_version": "5.0", "num_beams": 1, "suppress_tokens": []}, {}, []),
        (
            {"max_new_tokens": 20, "no_repeat_ngram_size": 3, "num_beams": 4},
            {"max_new_tokens": 20, "no_repeat_ngram_size": 3},
            [
                "taken from generation_config.json: max_new_tokens 20, no_repeat_ngram_size 3; "
                "not supported in generation_config.json: num_beams 4"
            ],
        ),
        (
            {"max_length": 20, "min_length": 5, "forced_bos_token_id": 0},
            {"max_new_tokens": 19, "min_new_tokens": 4, "forced_bos_token_id": 0},
            ["taken from generation_config.json: forced_bos_token_id 0, max_new_tokens 19, min_new_tokens 4"],
        ),
        ({"max_length": 20, "max_new_tokens": 7, "min_length": 0}, {"max_new_tokens": 7}, None),
        ({"do_sample": False, "temperature": 0.7, "top_k": 9, "typical_p": 0.5}, {}, []),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}, None),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
            {"temperature": 0.7, "top_p": 0.9},
            None,
        ),
        ({"do_sample": True, "top_k": 5, "min_p": 0.0, "top_h": 0.4}, {"temperature": 1.0, "top_k": 5}, None),
        (  # the values with which these change nothing (GenerationConfig's docstring)
            {"do_sample": True, "top_k": 5, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1}
            | {
                "repetition_penalty": 1.0,
                "encoder_repetition_penalty": 1.0,
                "guidance_scale": 1.0,
                "typical_p": 1.0,
            },
            {"temperature": 1.0, "top_k": 5},
            ["taken from generation_config.json: temperature 1.0, top_k 5"],
        ),
        ({"repetition_penalty": 1.2}, {}, ["not supported in generation_config.json: repetition_penalty 1.2"]),
        (
            {"max_new_tokens": 5, "_from_model_config": True},
            {"max_new_tokens": 5},
            ["taken from config.json: max_new_tokens 5"],
        ),
    ],
)
def test_fields_are_honoured_and_named(generation, fields, said):
    found, lines = read(generation)
    assert found == fields
    assert said is None or lines == said
    assert len(lines) <= 1


def test_what_the_user_gives_stays():
    cfg = dataclasses.replace(CONFIG, max_new_tokens=9, temperature=0.0)
    generation = {"max_new_tokens": 20, "do_sample": True, "no_repeat_ngram_size": 2}
    assert read(generation, cfg, ("max_new_tokens", "temperature")) == (
        {"no_repeat_ngram_size": 2, "top_k": 50},
        ["taken from generation_config.json: no_repeat_ngram_size 2"],
    )


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"max_length": 1, "_from_model_config": True}, "max_new_tokens is 0; allowed: an integer of at least 1"),
        ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size is '3'; allowed: an integer of at least 0"),
        ({"do_sample": "false"}, "do_sample is 'false'; allowed: true, false"),
        ({"max_length": "20"}, "max_length is '20'; allowed: an integer of at least 0"),
        ({"max_length": 1}, "max_new_tokens is 0; allowed: an integer of at least 1"),
        ({"do_sample": True, "top_p": 3}, "top_p is 3; allowed: a number above 0, to 1"),
    ],
)
def test_an_impossible_value_is_refused_by_the_files_name(generation, message):
    file = "config" if "_from_model_config" in generation else "generation_config"
    with pytest.raises(ValueError, match=f"^{file}.json: {message}"):
        with_generation_config(CONFIG, generation)


def test_every_field_of_transformers_is_honoured_named_or_known_to_change_no_text():
    """Fields that change what Hugging Face's `generate` gives, as its documentation of GenerationConfig says."""
    changing = {
        "num_beams", "num_beam_groups", "diversity_penalty", "num_return_sequences", "repetition_penalty",
        "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias",
        "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "exponential_decay_length_penalty",
        "guidance_scale", "penalty_alpha", "stop_strings", "max_time", "token_healing", "watermarking_config",
        "force_words_ids", "constraints", "dola_layers", "assistant_ensemble_weight", "min_p", "top_h",
        "typical_p", "epsilon_cutoff", "eta_cutoff",
    }  # fmt: skip
    everything = dict.fromkeys(vars(transformers.GenerationConfig()), 7) | {"do_sample": True, "top_p": 0.5}
    _, (line,) = read(everything)
    named = re.findall(r"(\w+) 7", line.partition("not supported")[2])
    assert set(named) == changing


def test_texts_without_a_config_are_as_long_as_hugging_faces():
    generation = {"max_length": 9, "min_length": 9, "no_repeat_ngram_size": 2}
    with pytest.warns(
        UserWarning, match="taken from generation_config.json: no_repeat_ngram_size 2, max_new_tokens 8"
    ):
        (text,) = dvp_jax.generate_text(dataclasses.replace(lettered(), generation_config=generation), ["bcd"])
    settings = transformers.GenerationConfig(
        **generation, decoder_start_token_id=0, eos_token_id=1, use_cache=False
    )
    peer = both(*MODEL)[0].generate(torch.tensor([[3, 4, 5, 1]]), generation_config=settings)
    assert len(text.tokens) == peer.shape[1] - 1
