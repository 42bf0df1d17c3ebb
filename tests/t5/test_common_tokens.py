"""The table of common tokens beside a checkpoint: counted, saved, loaded, and refused where it does not fit."""

import dataclasses
import json

import numpy as np
import pytest

import dvp_jax
from dvp_jax.decode.api import decode_policy
from dvp_jax.t5.common_tokens import count_tokens
from dvp_jax.t5.load import save_model
from tests.launching import make_checkpoint, start
from tests.models import both


def test_tokens_are_ordered_by_frequency_then_id():
    assert count_tokens([[5, 3, 3], [3, 1, 5], [4]], 7).tolist() == [3, 5, 1, 4, 0, 2, 6]


@pytest.fixture
def folder(tmp_path):
    model = dataclasses.replace(both("t5")[1], common_tokens=np.array([5, 3, 200]))
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def test_the_table_is_saved_and_loaded_with_the_model(folder):
    model = dvp_jax.load_model(folder)
    assert model.common_tokens.tolist() == [5, 3, 200]
    other = dataclasses.replace(model, common_tokens=np.array([5, 3]))
    assert other.fingerprint != model.fingerprint, "texts of dvp may differ"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"vocab_size": 99, "tokens": [1]}, "common_tokens.json has vocab_size 99; allowed: 211"),
        ({"vocab_size": 211, "tokens": [1, 211]}, "other tokens than different ids from 0 to 210"),
        ({"vocab_size": 211, "tokens": [1, 1]}, "other tokens than different ids from 0 to 210"),
        ({"vocab_size": 211, "tokens": []}, "other tokens than different ids from 0 to 210"),
        ({"vocab_size": 211}, "common_tokens.json is damaged"),
        ([], "common_tokens.json holds a list; allowed: a JSON object"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(folder, content, message):
    (folder / "common_tokens.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        dvp_jax.load_model(folder)


@pytest.mark.parametrize(("table", "had"), [(None, "none"), (np.arange(39), "39")])
def test_a_rule_that_guesses_needs_as_many_common_tokens_as_it_keeps(table, had):
    model = dataclasses.replace(both("t5")[1], common_tokens=table)
    cfg = dvp_jax.DecodeConfig(method="lossless", prune_rule="recent", prune_size=40)
    with pytest.raises(ValueError, match=f"guesses 40 tokens, but the model has {had} common tokens"):
        decode_policy(model, cfg)
    decode_policy(dataclasses.replace(model, common_tokens=np.arange(40)), cfg)


def test_the_launcher_counts_a_text(tmp_path):
    folder, text = make_checkpoint(tmp_path, seed=0).folder, tmp_path / "train.txt"
    text.write_text("ein Hund\u2028ein Mann\nein Hund\n\n", encoding="utf-8")
    run = start("-m", "scripts.count_tokens", f"--model={folder}", f"--text={text}", "--keep=3")
    assert run.stdout.endswith("the commonest tokens of 2 lines\n"), run.stderr
    model = dvp_jax.load_model(folder)
    rows = model.tokenizer(["ein Hund\u2028ein Mann", "ein Hund"])["input_ids"]
    assert model.common_tokens.tolist() == count_tokens(rows, model.config.vocab_size)[:3].tolist()
    missing = start("-m", "scripts.count_tokens", f"--model={folder}", "--text=nothing.txt")
    assert missing.returncode == 1 and "error: no data file nothing.txt" in missing.stderr
