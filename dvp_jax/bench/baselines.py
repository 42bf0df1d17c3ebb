"""Other decoders of the same weights, for comparison: Hugging Face's PyTorch and CTranslate2.

They need the extra `bench`. All of them read the same sources and generate the same number of tokens, greedily.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dvp_jax.bench.bandwidth import num_cores
from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.t5.load import Model

LIBRARIES = ("huggingface", "ctranslate2")
"""One library a run: once CTranslate2 has started its threads, PyTorch takes 1.5 times as long."""
CTRANSLATE2_TYPES = ("float32", "bfloat16", "int8")

Ids = Int[np.ndarray, "batch source"]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A decoder to time.

    Attributes:
        decode: generates, and returns the token ids of each row.
        encode: does the part of `decode` that is not decoding; its time is subtracted.
    """

    decode: Callable[[], list[list[int]]]
    encode: Callable[[], Any]


def baselines(
    library: str, model: Model, ids: Ids, new_tokens: int
) -> dict[str, tuple[Baseline, list[list[int]]] | str]:
    """The decoders of a library, run once each.

    Args:
        library: one of LIBRARIES.
        model: the model whose weights they get.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.

    Returns:
        For each decoder's name, the decoder and the token ids that it generated; or, if it cannot run, the reason.
    """
    makers: dict[str, Callable[[Path], Baseline]] = {}
    if library == "huggingface":
        for kind in ("eager", "compiled"):
            makers[f"Hugging Face {kind}"] = partial(hugging_face, model, ids, new_tokens, kind == "compiled")
    else:
        for compute_type in CTRANSLATE2_TYPES:
            makers[f"CTranslate2 {compute_type}"] = partial(ctranslate2, model, ids, new_tokens, compute_type)
    decoders: dict[str, tuple[Baseline, list[list[int]]] | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            try:
                baseline = make(Path(folder))
                decoders[name] = baseline, baseline.decode()
            except Exception as error:  # the failure of another project is a line of the table
                decoders[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return decoders


def pytorch_model(model: Model) -> Any:
    """The same weights as a Hugging Face PyTorch model, in float32.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch
    import transformers

    config = transformers.T5Config(**{**model.config.to_hugging_face(), "eos_token_id": 1})
    pytorch = transformers.T5ForConditionalGeneration(config).eval()
    tensors = hugging_face_tensors(model.config, model.params)
    weights = {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
    missing, unexpected = pytorch.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in name or name == "lm_head.weight" for name in missing)
    pytorch.tie_weights()
    return pytorch


def hugging_face(model: Model, ids: Ids, new_tokens: int, compiled: bool, _: Path) -> Baseline:
    """Hugging Face's `generate`, on sources that are encoded beforehand.

    Args:
        model: the model whose weights it gets.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.
        compiled: use a static cache and `torch.compile`; otherwise run eagerly.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    pytorch = pytorch_model(model)
    pytorch = pytorch.to(torch.bfloat16 if model.params["shared"].dtype == jnp.bfloat16 else torch.float32)
    source = torch.tensor(ids).long()
    encoded = pytorch.encoder(input_ids=source)
    options: dict[str, Any] = {"cache_implementation": "static"} if compiled else {}
    if compiled:
        pytorch.forward = torch.compile(pytorch.forward)

    def decode() -> list[list[int]]:
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
        return tokens[:, 1:].tolist()  # without the start token

    return Baseline(decode, lambda: None)


def ctranslate2(model: Model, ids: Ids, new_tokens: int, compute_type: str, folder: Path) -> Baseline:
    """CTranslate2 with one worker on all CPU cores.

    Args:
        model: the model to convert. CTranslate2 reads and writes tokens by name: each is named by its id.
        ids: (batch, source) token ids without padding.
        new_tokens: how many tokens each row generates.
        compute_type: one of CTRANSLATE2_TYPES; the weights are converted to it.
        folder: where the converted model is written.

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
    ids_by_name = {name: index for index, name in enumerate(vocabulary)}
    rows = [[vocabulary[token] for token in row] for row in ids.tolist()]

    def translate(length: int) -> list[list[int]]:
        results = translator.translate_batch(
            rows, beam_size=1, max_decoding_length=length, min_decoding_length=length
        )
        return [[ids_by_name[name] for name in result.hypotheses[0]] for result in results]

    # It has no call for the encoder alone: generating one token stands for it.
    return Baseline(lambda: translate(new_tokens), lambda: translate(1))
