"""`python scripts/convert_checkpoint.py` on a tiny random model."""

import functools
import json
import os
import runpy

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from dvp_jax.runs.files import write_folder
from tests.launching import ROOT, SENTENCES, call, check_error, files_of, start

SCRIPT = "scripts/convert_checkpoint.py"
run_script = functools.partial(runpy.run_path, str(ROOT / SCRIPT), run_name="__main__")


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    orbax = folder / "orbax"
    back = folder / "deeper" / "huggingface"
    runs = (
        start(SCRIPT, f"--source={checkpoint.folder}", f"--output={orbax}", "--format=orbax"),
        call(run_script, f"--source={orbax}", f"--output={back}", "--format=huggingface"),
    )
    return runs, orbax, back


def test_conversion_to_orbax_and_back_keeps_every_tensor(checkpoint, converted):
    runs, orbax, back = converted
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    assert (orbax / "params").is_dir() and not list(orbax.glob("*.safetensors"))
    expected, converted_tensors = (load_file(folder / "model.safetensors") for folder in (checkpoint.folder, back))
    assert set(converted_tensors) == set(expected) and "lm_head.weight" in expected
    for name, tensor in expected.items():
        assert converted_tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(converted_tensors[name], tensor, err_msg=name)


def test_conversion_takes_config_and_tokenizer_along_and_leaves_no_partial_folder(checkpoint, converted):
    _, orbax, back = converted
    assert files_of(orbax.parent) == ["deeper", "orbax"] and files_of(back.parent) == ["huggingface"]
    fields = json.loads((checkpoint.folder / "config.json").read_text())
    for folder in (orbax, back):
        converted_fields = json.loads((folder / "config.json").read_text())
        for name in ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers"):
            assert converted_fields[name] == fields[name]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer(SENTENCES[2])["input_ids"] == checkpoint.ids(SENTENCES[2])


def test_conversion_refuses_a_folder_that_holds_a_checkpoint(checkpoint, converted):
    _, _, back = converted
    before = {path: path.read_bytes() for path in back.iterdir()}
    flags = f"--source={checkpoint.folder}", f"--output={back}", "--format=orbax", "--dtype=bfloat16"
    run = call(run_script, *flags)
    check_error(run, back, "checkpoint already")
    assert {path: path.read_bytes() for path in back.iterdir()} == before
    assert files_of(back.parent) == ["huggingface"]


def test_a_second_conversion_into_a_folder_is_refused_while_the_first_runs(checkpoint, tmp_path):
    with write_folder(tmp_path / "out"):
        run = call(run_script, f"--source={checkpoint.folder}", f"--output={tmp_path / 'out'}")
        check_error(run, f"{tmp_path / 'out'} is in use by process {os.getpid()}; allowed: one")
        assert "loading" not in run.stderr
