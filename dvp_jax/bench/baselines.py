"""Other decoders of the same weights, for the benchmark: Hugging Face's PyTorch and CTranslate2.

Each is there where its package is installed (the extra `bench`). All get the same sources and generate the same
number of tokens, greedily.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.t5.load import Model

CTRANSLATE2_TYPES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A decoder to time.

    Attributes:
        decode: generates; returns the token ids of each row.
        encode: only what `decode` does besides decoding; its time is subtracted.
    """

    decode: Callable[[], list[list[int]]]
    encode: Callable[[], Any]


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytorch_model(model: Model) -> Any:
    """The same weights in Hugging Face's PyTorch, float32.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch
    import transformers

    config = transformers.T5Config(**{**model.config.to_hugging_face(), "eos_token_id": 1})
    peer = transformers.T5ForConditionalGeneration(config).eval()
    tensors = hugging_face_tensors(model.config, model.params)
    weights = {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in name or name == "lm_head.weight" for name in missing)
    peer.tie_weights()
    return peer


def hugging_face(model: Model, ids: np.ndarray, new_tokens: int, compiled: bool, _: Path) -> Peer:
    """Hugging Face's `generate`: eager, or with a static cache and `torch.compile`.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    peer = pytorch_model(model)
    peer = peer.to(torch.bfloat16 if model.params["shared"].dtype == jnp.bfloat16 else torch.float32)
    source = torch.tensor(ids).long()
    encoded = peer.encoder(input_ids=source)
    options: dict[str, Any] = {"cache_implementation": "static"} if compiled else {}
    if compiled:
        peer.forward = torch.compile(peer.forward)

    def decode() -> list[list[int]]:
        with torch.inference_mode():
            out = peer.generate(
                encoder_outputs=encoded,
                attention_mask=torch.ones_like(source),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                **options,
            )
        return out[:, 1:].tolist()

    return Peer(decode, lambda: None)


def ctranslate2(model: Model, ids: np.ndarray, new_tokens: int, compute_type: str, folder: Path) -> Peer:
    """CTranslate2 on one CPU worker with all cores.

    Args:
        model: what to convert; its tokens are named by their ids.
        ids: sources.
        new_tokens: to generate.
        compute_type: of CTranslate2; the weights are converted to it.
        folder: for the converted model.

    Raises:
        ImportError: CTranslate2 or PyTorch is not installed.
    """
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
    translator = ct2.Translator(str(target), compute_type=compute_type, intra_threads=num_cores())
    number = {name: index for index, name in enumerate(vocabulary)}
    rows = [[vocabulary[token] for token in row] for row in ids.tolist()]

    def run(length: int) -> list[list[int]]:
        results = translator.translate_batch(
            rows, beam_size=1, max_decoding_length=length, min_decoding_length=length
        )
        return [[number[name] for name in result.hypotheses[0]] for result in results]

    return Peer(lambda: run(new_tokens), lambda: run(1))


LIBRARIES = ("huggingface", "ctranslate2")
"""Of peers. One a run: once CTranslate2's threads are there, PyTorch takes 1.5 times as long."""


def peers(
    library: str, model: Model, ids: np.ndarray, new_tokens: int
) -> dict[str, tuple[Peer, list[list[int]]] | str]:
    """A library's decoders on these weights, with the tokens that each generates; of one that cannot run, why."""
    makers: dict[str, Callable[[Path], Peer]] = {}
    if library == "huggingface":
        for kind in ("eager", "compiled"):
            makers[f"Hugging Face {kind}"] = partial(hugging_face, model, ids, new_tokens, kind == "compiled")
    else:
        for kind in CTRANSLATE2_TYPES:
            makers[f"CTranslate2 {kind}"] = partial(ctranslate2, model, ids, new_tokens, kind)
    out: dict[str, tuple[Peer, list[list[int]]] | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            try:
                peer = make(Path(folder))
                out[name] = peer, peer.decode()
            except Exception as error:  # another project's failure is a line of the report
                out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return out
