"""Other decoders of the same weights, for comparison: Hugging Face's PyTorch and CTranslate2.

They need the extra `bench`. All of them read the same sources and generate the same number of tokens, greedily, on
the device that JAX runs on.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dvp_jax.bench.bandwidth import num_cores
from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.t5.load import Model

CTRANSLATE2_TYPES = ("float32", "bfloat16", "int8")
LIBRARIES = {
    "huggingface": ("Hugging Face eager", "Hugging Face compiled"),
    "ctranslate2": tuple(f"CTranslate2 {compute_type}" for compute_type in CTRANSLATE2_TYPES),
}
"""The decoders of each library. One library a run: once CTranslate2 has started its threads, PyTorch takes 1.5
times as long."""

Ids = Int[np.ndarray, "batch source"]
Tokens = list[list[int]]
"""For each row, the ids that it generated."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A decoder to time.

    Attributes:
        decode: generates, and returns when the device has finished.
        to_host: the token ids of what `decode` returned, which may be on the device.
        encode: does the part of `decode` that is not decoding; its time is subtracted. None where there is no such
            part.
    """

    decode: Callable[[], Any]
    to_host: Callable[[Any], Tokens]
    encode: Callable[[], Any] | None = None


class Started(NamedTuple):
    """A decoder that has run once, or the reason why it cannot run."""

    name: str
    baseline: Baseline | None
    tokens: Tokens  # that it generated
    error: str


def start_baselines(library: str, model: Model, ids: Ids, new_tokens: int) -> Iterator[Started]:
    """The decoders of a library, each made and run once when it is asked for.

    Args:
        library: a key of LIBRARIES.
        model: the model whose weights they get.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.
    """
    make: Callable[[str, Path], Baseline]
    if library == "huggingface":
        make = partial(hugging_face, model, ids, new_tokens)
    else:
        make = partial(ctranslate2, model, ids, new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        for name in LIBRARIES[library]:
            try:
                baseline = make(name.split()[-1], Path(folder))
                yield Started(name, baseline, baseline.to_host(baseline.decode()), "")
            except Exception as error:  # the failure of another project is a line of the table
                yield Started(name, None, [], describe(error))


def describe(error: Exception) -> str:
    """The type of an error and the first line of its message, of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def torch_device() -> str:
    """The device that JAX runs on, as PyTorch and CTranslate2 name it: "cpu" or "cuda".

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: PyTorch cannot use that device.
    """
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend != "gpu":
        raise RuntimeError(f"JAX runs on a {backend}; allowed for other decoders: cpu, gpu")
    if not torch.cuda.is_available():
        raise RuntimeError("JAX runs on a GPU, but torch.cuda.is_available() is False; PyTorch needs CUDA")
    return "cuda"


def pytorch_model(model: Model, device: str = "cpu") -> Any:
    """The same weights as a Hugging Face PyTorch model, in float32.

    Args:
        model: the weights.
        device: where PyTorch keeps them.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch
    import transformers

    config = transformers.T5Config(**{**model.config.to_hugging_face(), "eos_token_id": 1})
    with torch.device(device):  # a GPU draws the weights that are replaced below in no time
        pytorch = transformers.T5ForConditionalGeneration(config).eval()
    if not model.config.tie_word_embeddings:  # transformers 5 ties every T5, whatever its config says
        pytorch.lm_head.weight = torch.nn.Parameter(torch.empty_like(pytorch.shared.weight))
    tensors = hugging_face_tensors(model.config, model.params)
    weights = {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    missing, unexpected = pytorch.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in name or name == "lm_head.weight" for name in missing)
    return pytorch


def hugging_face(model: Model, ids: Ids, new_tokens: int, form: str, _: Path) -> Baseline:
    """Hugging Face's `generate`, on sources that are encoded beforehand.

    Args:
        model: the model whose weights it gets.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.
        form: "eager", or "compiled" for a static cache and `torch.compile`, on a GPU with CUDA graphs.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: PyTorch cannot use JAX's device.
    """
    import torch

    device = torch_device()
    dtype = torch.bfloat16 if model.params["shared"].dtype == jnp.bfloat16 else torch.float32
    pytorch = pytorch_model(model, device).to(dtype)
    source = torch.tensor(ids, device=device).long()
    with torch.inference_mode():
        encoded = pytorch.encoder(input_ids=source)
    options: dict[str, Any] = {}
    if form == "compiled":
        # `generate` would compile too, but on a GPU only.
        options = {"cache_implementation": "static", "disable_compile": True}
        pytorch.forward = torch.compile(pytorch.forward, mode=None if device == "cpu" else "reduce-overhead")

    def decode() -> torch.Tensor:
        with torch.inference_mode():
            tokens = pytorch.generate(
                encoder_outputs=encoded,
                attention_mask=torch.ones_like(source),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                **options,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return tokens

    return Baseline(decode, lambda tokens: tokens[:, 1:].tolist())  # without the start token


def ctranslate2(model: Model, ids: Ids, new_tokens: int, compute_type: str, folder: Path) -> Baseline:
    """CTranslate2 with one worker, on a CPU with all cores.

    Args:
        model: the model to convert. CTranslate2 reads and writes tokens by name: each is named by its id.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.
        compute_type: one of CTRANSLATE2_TYPES; the weights are converted to it.
        folder: where the converted model is written.

    Raises:
        ImportError: CTranslate2 or PyTorch is not installed.
        RuntimeError: PyTorch or CTranslate2 cannot use JAX's device.
    """
    device = torch_device()
    import ctranslate2 as ct2
    import transformers
    from tokenizers import Tokenizer, models

    source = folder / "hugging_face"
    if not source.exists():
        pytorch_model(model).save_pretrained(source)
        names = {f"<{index}>": index for index in range(model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(names, unk_token="<2>"))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<0>", eos_token="<1>", unk_token="<2>"
        ).save_pretrained(source)
    target = folder / compute_type
    ct2.converters.TransformersConverter(str(source)).convert(str(target), quantization=compute_type)
    vocabulary = json.loads((target / "shared_vocabulary.json").read_text(encoding="utf-8"))
    translator = ct2.Translator(str(target), device=device, compute_type=compute_type, intra_threads=num_cores())
    ids_by_name = {name: index for index, name in enumerate(vocabulary)}
    rows = [[vocabulary[token] for token in row] for row in ids.tolist()]

    def translate(length: int) -> Tokens:
        results = translator.translate_batch(
            rows, beam_size=1, max_decoding_length=length, min_decoding_length=length
        )
        return [[ids_by_name[name] for name in result.hypotheses[0]] for result in results]

    # It has no call for the encoder alone: generating one token stands for it.
    return Baseline(lambda: translate(new_tokens), lambda tokens: tokens, lambda: translate(1))
