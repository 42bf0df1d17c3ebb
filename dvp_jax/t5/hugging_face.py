"""Hugging Face checkpoints <-> parameters, tensor by tensor.

Weights are stored (out, in) on both sides, so conversion renames and never transposes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.exit_classifier import MetaClassifier
from dvp_jax.t5.model import T5, Params
from dvp_jax.t5.sharding import gathered, pad_vocabulary, shardings

DTYPES = ("float32", "bfloat16")

ParameterPath = tuple[str, ...]
"""A parameter's keys, from the root of the nested dict."""

_ATTENTION = {
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "o",
    "relative_bias": "relative_attention_bias",
}
_BLOCKS = {
    "self_attention": "SelfAttention",
    "cross_attention": "EncDecAttention",
    "feed_forward": "DenseReluDense",
}


def hugging_face_name(path: ParameterPath, config: T5Config) -> str:
    """Hugging Face's name of the parameter at `path`."""
    if len(path) == 1:
        return f"{path[0]}.weight"
    stack, layer = path[:2]
    if layer == "final_norm":
        return f"{stack}.final_layer_norm.weight"
    block, weight = path[2:]
    blocks = ["self_attention", "cross_attention", "feed_forward"]
    if stack == "encoder":
        blocks.remove("cross_attention")
    name = block.removesuffix("_norm")
    prefix = f"{stack}.block.{layer.removeprefix('layers_')}.layer.{blocks.index(name)}"
    if block.endswith("_norm"):
        return f"{prefix}.layer_norm.weight"
    if name == "feed_forward":
        weight = {"wi": "wi_0", "wi_linear": "wi_1"}.get(weight, weight) if config.gated else weight
    else:
        weight = _ATTENTION[weight]
    return f"{prefix}.{_BLOCKS[name]}.{weight}.weight"


@functools.cache  # tracing takes seconds for a model of 24 layers
def parameter_shapes(config: T5Config) -> Mapping[ParameterPath, tuple[int, ...]]:
    """Shape of every parameter of such a model."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    tree = jax.eval_shape(T5(config).init, jax.random.key(0), ids, mask, ids)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


# Copies that some files carry of tensors which T5 has once, and one that Hugging Face ignores too.
_REDUNDANT = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight|"
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


class TensorFiles:
    """The tensors of a Hugging Face folder by name, each read when asked for.

    Args:
        folder: holds `model.safetensors`, `model.safetensors.index.json` and its shards, or the same with
            `pytorch_model` and `.bin` (read with PyTorch and `weights_only=True`).

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is not there.
        ValueError: a file is truncated or is not what its ending says.
    """

    def __init__(self, folder: Path) -> None:
        readers: list[Any] = [_SafetensorsFile(file) for file in _files_of(folder, "model", "safetensors")]
        readers = readers or [_PytorchFile(file) for file in _files_of(folder, "pytorch_model", "bin")]
        if not readers:
            raise FileNotFoundError(
                f"{folder} has no weights; looked for model.safetensors, pytorch_model.bin and their index files"
            )
        self._reader_of: dict[str, Any] = {name: reader for reader in readers for name in reader.shapes}

    def open(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A tensor of which slices are read as they are asked for; of a `.bin` file it is read whole, once."""
        return self._reader_of[name].open(name)

    def __contains__(self, name: object) -> bool:
        return name in self._reader_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._reader_of[name].shapes[name]


def _files_of(folder: Path, stem: str, ending: str) -> list[Path]:
    """The one file of that kind, or all that its index names; none where there is neither."""
    single, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not a Hugging Face weight index: {error!r}") from None
    files = [folder / name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{index} names {', '.join(missing)}, not in the folder")
    return files


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or is not a safetensors file: {error}") from None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        # Opened anew for each tensor: the pages of a mapped file count as memory until it is closed.
        with safe_open(self.path, framework="numpy") as file:
            yield file.get_slice(name)

    def read(self, name: str) -> np.ndarray:
        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(name)


class _PytorchFile:
    def __init__(self, path: Path) -> None:
        try:
            import torch
        except ImportError:
            raise ImportError(f"reading {path} needs PyTorch: python -m pip install 'dvp-jax[torch]'") from None
        self._torch = torch
        try:
            self._tensors = dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load has no error class of its own
            raise ValueError(f"{path} is truncated or is not a PyTorch state dict: {error}") from None
        if wrong := [str(name) for name, value in self._tensors.items() if not torch.is_tensor(value)]:
            raise ValueError(f"{path}: not tensors: {', '.join(wrong)}")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[np.ndarray]:
        tensor = self._tensors.pop(name)  # its memory goes as soon as the caller is done
        if tensor.dtype == self._torch.bfloat16:
            yield tensor.contiguous().view(self._torch.uint16).numpy().view(jnp.bfloat16)
        else:
            yield tensor.numpy()


def read_checkpoint(
    folder: Path,
    dtype: str = "float32",
    progress: Callable[[Iterator], Iterator] = iter,
    mesh: Mesh | None = None,
) -> tuple[T5Config, Params]:
    """Reads a Hugging Face folder; holds one tensor more than the result.

    With a mesh each process reads of each tensor only the shards of its own devices.

    The unembedding is untied where `lm_head.weight` is in the file and differs from `shared.weight`,
    whatever config.json says.

    Args:
        folder: with config.json and the weights.
        dtype: of all parameters, "float32" or "bfloat16".
        progress: wraps the iterator over parameters, for a progress bar.
        mesh: where parameters go; None for the default device.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        ValueError: a file is damaged; tensors are missing, superfluous or of the wrong shape (all are
            listed); a tensor holds NaN or infinity; another model type; a mesh that does not fit the model.
    """
    config = T5Config.from_file(folder / "config.json")
    tensors = TensorFiles(folder)

    untied = "lm_head.weight" in tensors and "shared.weight" in tensors
    config = dataclasses.replace(config, tie_word_embeddings=not untied)
    shapes = parameter_shapes(config)
    names = {path: hugging_face_name(path, config) for path in shapes}
    _check_tensors(folder, tensors, {names[path]: shape for path, shape in shapes.items()})

    config, targets = parameter_targets(config, dtype, mesh)
    flat: dict[ParameterPath, jax.Array] = {}
    not_finite = []
    for path in progress(iter(names)):
        with tensors.open(names[path]) as tensor:

            def read(index: tuple[slice, ...], tensor: Any = tensor, name: str = names[path]) -> np.ndarray:
                part = tensor[index]
                if not np.isfinite(part.astype(np.float32, copy=False)).all():
                    not_finite.append(name)
                return part

            flat[path] = _fill(targets[path], shapes[path], read)
    if not_finite:
        raise ValueError(f"{folder}: NaN or infinity in {', '.join(dict.fromkeys(not_finite))}")

    if untied and bool(jnp.array_equal(flat[("lm_head",)], flat[("shared",)])):
        del flat[("lm_head",)]
        config = dataclasses.replace(config, tie_word_embeddings=True)
    return config, traverse_util.unflatten_dict(flat)


def parameter_targets(
    config: T5Config, dtype: str, mesh: Mesh | None
) -> tuple[T5Config, dict[ParameterPath, jax.ShapeDtypeStruct]]:
    """Shape, dtype and, on a mesh, place of every parameter; the config with the vocabulary's padding there.

    Raises:
        ValueError: the mesh does not fit the model.
    """
    if mesh is not None:
        config = pad_vocabulary(config, mesh)
    target = {
        path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, shape in parameter_shapes(config).items()
    }
    if mesh is None:
        return config, target
    places = traverse_util.flatten_dict(shardings(mesh, traverse_util.unflatten_dict(target)))
    return config, {path: leaf.update(sharding=places[path]) for path, leaf in target.items()}


def _fill(
    target: jax.ShapeDtypeStruct, stored: tuple[int, ...], read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """The array, each part of it read once; zeros beyond the shape that is stored."""
    if target.sharding is None:
        return jnp.asarray(read(tuple(map(slice, stored))), target.dtype)

    @functools.cache  # devices along "data" hold the same
    def part(*bounds: tuple[int, int]) -> np.ndarray:
        filled = np.zeros([end - begin for begin, end in bounds], target.dtype)
        index = tuple(slice(begin, min(end, size)) for (begin, end), size in zip(bounds, stored, strict=True))
        if all(s.start < s.stop for s in index):
            found = read(index)
            filled[tuple(map(slice, found.shape))] = found
        return filled

    def of(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return part(*(s.indices(size)[:2] for s, size in zip(index, target.shape, strict=True)))

    return jax.make_array_from_callback(target.shape, target.sharding, of)


def _check_tensors(folder: Path, tensors: TensorFiles, expected: dict[str, tuple[int, ...]]) -> None:
    found = {name: tensors.shape(name) for name in tensors if name in expected or not _REDUNDANT.fullmatch(name)}
    check_shapes(folder, found, expected)


def check_shapes(
    folder: Path,
    found: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    config: str = "config.json",
) -> None:
    """Refuses a checkpoint whose tensors are not those of its config, which errors call by the given name.

    Raises:
        ValueError: lists every tensor that is missing, superfluous or of another shape.
    """
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"not of this model: {name} {shape}" for name, shape in found.items() if name not in expected]
    problems += [
        f"wrong shape: {name} {found[name]}; {config} says {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(f"{folder}: the tensors do not fit {config}\n  " + "\n  ".join(problems))


def hugging_face_tensors(config: T5Config, params: Params) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names, without padding; on one CPU not copied."""
    return {name: stored_tensor(config, name, leaf) for name, leaf in _by_name(config, params).items()}


def _by_name(config: T5Config, params: Params) -> dict[str, jax.Array]:
    return {hugging_face_name(path, config): leaf for path, leaf in traverse_util.flatten_dict(params).items()}


def stored_tensor(config: T5Config, name: str, value: jax.Array | np.ndarray) -> np.ndarray:
    """A parameter as a file holds it: all of it in memory, without the rows that fill up the vocabulary.

    Of several processes that hold parts of it, all must ask.
    """
    array = gathered(value)
    return array[: config.vocab_size] if name.removesuffix(".weight") in _VOCABULARY else array


_VOCABULARY = ("shared", "lm_head")


def without_padding(config: T5Config, params: Params) -> Params:
    """The parameters as a file holds them: without the rows that fill up the vocabulary."""
    if not config.vocab_padding:
        return params
    return {name: value[: config.vocab_size] if name in _VOCABULARY else value for name, value in params.items()}


MAX_FILE_BYTES = 5 * 10**9
"""Of weights in one file, unless a single tensor is larger; the limit that Hugging Face long had."""


def write_checkpoint(folder: Path | None, config: T5Config, params: Params) -> None:
    """Writes config.json and the weights, which `transformers` and `read_checkpoint` read.

    The weights are model.safetensors; where they exceed `MAX_FILE_BYTES`, several files and an index, as Hugging
    Face writes them. No more than one file is in memory at once, beside the parameters.

    Args:
        folder: exists; None where another process writes, which needs this one's parts of the parameters.
        config: the shape.
        params: all of one dtype.

    Raises:
        OSError: the folder cannot be written.
    """
    leaves = _by_name(config, params)
    groups = _groups(leaves)
    weight_map: dict[str, str] = {}
    size = 0
    for number, names in enumerate(groups, start=1):
        part = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        tensors = {}
        for name in names:
            tensor = stored_tensor(config, name, leaves[name])
            if folder is not None:
                tensors[name] = tensor
                size += tensor.nbytes
        if folder is not None:
            save_file(tensors, folder / f"model{part}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, f"model{part}.safetensors")
    if folder is None:
        return
    if len(groups) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_config(folder, config, params)


def _groups(leaves: Mapping[str, jax.Array]) -> list[list[str]]:
    """Names of the tensors of each file."""
    groups: list[list[str]] = []
    room = 0
    for name, leaf in leaves.items():
        if not groups or leaf.nbytes > room:
            groups.append([])
            room = MAX_FILE_BYTES
        groups[-1].append(name)
        room -= leaf.nbytes
    return groups


def write_config(folder: Path, config: T5Config, params: Params) -> None:
    """Writes the config.json of a Hugging Face folder."""
    fields = {**config.to_hugging_face(), "dtype": str(params["shared"].dtype)}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


META_FILE = "meta_classifier.safetensors"
"""CALM's classifier, beside the weights that it was trained on."""


def write_meta(folder: Path, meta: MetaClassifier) -> None:
    """Writes the meta classifier of a checkpoint folder."""
    save_file({name: np.asarray(value) for name, value in vars(meta).items()}, folder / META_FILE)


def read_meta(folder: Path, config: T5Config) -> MetaClassifier:
    """Reads the meta classifier of a checkpoint folder.

    Raises:
        ValueError: the file is damaged, or is of another model.
    """
    file = _SafetensorsFile(folder / META_FILE)
    expected: dict[str, tuple[int, ...]] = {"weight": (config.d_model,), "bias": ()}
    check_shapes(folder / META_FILE, file.shapes, expected)
    return MetaClassifier(**{name: jnp.asarray(file.read(name)) for name in expected})


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Files written to the yielded folder appear in `folder` when the block ends well, else none does."""
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        yield partial
        folder.mkdir(parents=True, exist_ok=True)
        # config.json last: without it, a folder is no checkpoint.
        for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "config.json"):
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
