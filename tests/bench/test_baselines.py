"""Other decoders run on JAX's device, or say why they cannot."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from dvp_jax.bench.baselines import start_baselines, torch_device
from tests.models import both


def test_they_run_on_the_device_that_jax_uses(monkeypatch):
    assert torch_device() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device() == "cuda"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(RuntimeError, match="JAX runs on a tpu; allowed for other decoders: cpu, gpu"):
        torch_device()


@pytest.mark.parametrize("library", ["huggingface", "ctranslate2"])
def test_without_cuda_they_do_not_run_on_the_cpu_beside_a_gpu(library, monkeypatch):
    _, model = both("t5", 0, 1.0, 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    decoders = list(start_baselines(library, model, np.array([[3, 4]]), 2))
    assert len(decoders) == (2 if library == "huggingface" else 3)
    for decoder in decoders:
        assert decoder.baseline is None
        assert "torch.cuda.is_available() is False" in decoder.error


@pytest.mark.parametrize("variant", ["t5", "t5.1.1", "mt5"])  # the last two have an unembedding of their own
def test_eager_pytorch_generates_the_tokens_of_the_same_weights(variant):
    peer, model = both(variant, 0, 4.0, 4.0, num_layers=4)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=()))
    ids = np.array([[3, 4, 5], [6, 7, 8]])
    eager = next(start_baselines("huggingface", model, ids, 4))
    tokens = peer.generate(torch.tensor(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=1)
    assert eager.error == ""
    assert eager.tokens == tokens[:, 1:].tolist()
