"""Reads and writes Hugging Face checkpoints, one tensor at a time.

Both sides store weights (outputs, inputs), so conversion renames tensors and never transposes them.
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
from dvp_jax.t5.exit_classifier import ExitClassifier
from dvp_jax.t5.model import T5, Params
from dvp_jax.t5.sharding import pad_vocabulary, shardings, to_host

DTYPES = ("float32", "bfloat16")

ParameterPath = tuple[str, ...]
"""A parameter's keys in the nested dict, from the root."""

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
    """Shape of every parameter of a model with this config."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    tree = jax.eval_shape(T5(config).init, jax.random.key(0), ids, mask, ids)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


# Tensors that some files have in addition: copies of the embedding, and a bias that Hugging Face ignores too.
_REDUNDANT = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight|"
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


class TensorFiles:
    """The tensors of a Hugging Face folder by name. Each is read when it is opened.

    Args:
        folder: has `model.safetensors`, or `model.safetensors.index.json` and the files that it lists, or the same
            as `pytorch_model` and `.bin` (read with PyTorch and `weights_only=True`).

    Raises:
        FileNotFoundError: no weights, or a file that the index lists is missing.
        ValueError: a file is truncated or is not of the format that its ending says.
    """

    def __init__(self, folder: Path) -> None:
        readers: list[Any] = [_SafetensorsFile(file) for file in _weight_files(folder, "model", "safetensors")]
        readers = readers or [_PytorchFile(file) for file in _weight_files(folder, "pytorch_model", "bin")]
        if not readers:
            raise FileNotFoundError(
                f"{folder} has no weights; looked for model.safetensors, pytorch_model.bin and their index files"
            )
        self._reader_of: dict[str, Any] = {name: reader for reader in readers for name in reader.shapes}

    def open(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A context with the tensor. Slices of it are read when indexed; from a `.bin` file it opens only once."""
        return self._reader_of[name].open(name)

    def __contains__(self, name: object) -> bool:
        return name in self._reader_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; does not read it."""
        return self._reader_of[name].shapes[name]


def _weight_files(folder: Path, stem: str, ending: str) -> list[Path]:
    """`stem.ending`, or the files that its index lists; an empty list if the folder has neither."""
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
    """A file that is read one slice at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or is not a safetensors file: {error}") from None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        # The file is opened for each tensor, because pages of a mapped file count as memory until it is closed.
        with safe_open(self.path, framework="numpy") as file:
            yield file.get_slice(name)

    def read(self, name: str) -> np.ndarray:
        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(name)


class _PytorchFile:
    """A file that PyTorch reads into memory. Each tensor is freed after it was opened once."""

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
        tensor = self._tensors.pop(name)  # so that its memory is freed when the caller is done
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
    """Reads a Hugging Face folder. Needs memory for the parameters and one more tensor.

    With a mesh, each process reads only the shards of its own devices. The unembedding is untied if the file has
    an `lm_head.weight` that differs from `shared.weight`, whatever config.json says.

    Args:
        folder: has config.json and the weights.
        dtype: dtype of all parameters, "float32" or "bfloat16".
        progress: wraps the iterator over parameters, for a progress bar.
        mesh: devices to put the parameters on; None for the default device.

    Returns:
        The config and the parameters in the layout of `dvp_jax.t5.model`.

    Raises:
        FileNotFoundError: config.json or the weights are missing.
        ValueError: a file is damaged; tensors are missing, superfluous or of the wrong shape (all are
            listed); a tensor contains NaN or infinity; another model type; a mesh that does not fit the model.
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

            flat[path] = _make_array(targets[path], shapes[path], read)
    if not_finite:
        raise ValueError(f"{folder}: NaN or infinity in {', '.join(dict.fromkeys(not_finite))}")

    if untied and bool(jnp.array_equal(flat[("lm_head",)], flat[("shared",)])):
        del flat[("lm_head",)]
        config = dataclasses.replace(config, tie_word_embeddings=True)
    return config, traverse_util.unflatten_dict(flat)


def parameter_targets(
    config: T5Config, dtype: str, mesh: Mesh | None
) -> tuple[T5Config, dict[ParameterPath, jax.ShapeDtypeStruct]]:
    """What every parameter is to become when it is read.

    Args:
        config: without padding of the vocabulary.
        dtype: dtype of all parameters.
        mesh: devices to put the parameters on; None for the default device.

    Returns:
        The config, padded to the mesh, and the shape, dtype and sharding of every parameter.
    """
    if mesh is not None:
        config = pad_vocabulary(config, mesh)
    targets = {
        path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, shape in parameter_shapes(config).items()
    }
    if mesh is None:
        return config, targets
    sharding_of = traverse_util.flatten_dict(shardings(mesh, traverse_util.unflatten_dict(targets)))
    return config, {path: leaf.update(sharding=sharding_of[path]) for path, leaf in targets.items()}


def _make_array(
    target: jax.ShapeDtypeStruct, stored_shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """Reads a stored tensor into an array. What the array has beyond the stored shape is zero.

    Args:
        target: shape, dtype and sharding of the array.
        stored_shape: shape of the tensor in the file.
        read: reads a part of the tensor. Each part is read once, even if several devices hold it.
    """
    if target.sharding is None:
        return jnp.asarray(read(tuple(map(slice, stored_shape))), target.dtype)

    @functools.cache  # devices along "data" hold the same part
    def read_part(*bounds: tuple[int, int]) -> np.ndarray:
        part = np.zeros([end - begin for begin, end in bounds], target.dtype)
        index = tuple(
            slice(begin, min(end, size)) for (begin, end), size in zip(bounds, stored_shape, strict=True)
        )
        if all(s.start < s.stop for s in index):
            stored = read(index)
            part[tuple(map(slice, stored.shape))] = stored
        return part

    def read_shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read_part(*(s.indices(size)[:2] for s, size in zip(index, target.shape, strict=True)))

    return jax.make_array_from_callback(target.shape, target.sharding, read_shard)


def _check_tensors(folder: Path, tensors: TensorFiles, expected: dict[str, tuple[int, ...]]) -> None:
    stored = {name: tensors.shape(name) for name in tensors if name in expected or not _REDUNDANT.fullmatch(name)}
    check_shapes(folder, stored, expected)


def check_shapes(
    folder: Path,
    stored: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    config: str = "config.json",
) -> None:
    """Checks that the tensors of a checkpoint are those of its config.

    Args:
        folder: the checkpoint, for the error.
        stored: shapes of the tensors in the checkpoint, by name.
        expected: shapes of the config's tensors, by name.
        config: what the error calls the config.

    Raises:
        ValueError: lists every tensor that is missing, superfluous or of another shape.
    """
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in stored]
    problems += [f"not of this model: {name} {shape}" for name, shape in stored.items() if name not in expected]
    problems += [
        f"wrong shape: {name} {stored[name]}; {config} says {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        raise ValueError(f"{folder}: the tensors do not fit {config}\n  " + "\n  ".join(problems))


def hugging_face_tensors(config: T5Config, params: Params) -> dict[str, np.ndarray]:
    """The parameters by Hugging Face's names, without padding. On a single CPU device they are not copied."""
    return {name: stored_tensor(config, name, leaf) for name, leaf in _by_name(config, params).items()}


def _by_name(config: T5Config, params: Params) -> dict[str, jax.Array]:
    return {hugging_face_name(path, config): leaf for path, leaf in traverse_util.flatten_dict(params).items()}


def stored_tensor(config: T5Config, name: str, value: jax.Array | np.ndarray) -> np.ndarray:
    """A parameter as a file stores it: the full array, without padding of the vocabulary.

    If several processes hold parts of the parameter, all of them must call this.

    Args:
        config: the shape of the model.
        name: the parameter's name in the file, or its key in the parameters.
        value: the parameter.
    """
    array = to_host(value)
    return array[: config.vocab_size] if name.removesuffix(".weight") in _VOCABULARY else array


_VOCABULARY = ("shared", "lm_head")


def without_padding(config: T5Config, params: Params) -> Params:
    """The parameters without padding of the vocabulary, on the same devices."""
    if not config.vocab_padding:
        return params
    return {name: value[: config.vocab_size] if name in _VOCABULARY else value for name, value in params.items()}


MAX_FILE_BYTES = 5 * 10**9
"""Limit of one file of weights, unless a single tensor is larger. Hugging Face long had the same limit."""


def write_checkpoint(folder: Path | None, config: T5Config, params: Params) -> None:
    """Writes config.json and the weights. `transformers` and `read_checkpoint` can read them.

    The weights go into model.safetensors. If they exceed `MAX_FILE_BYTES`, they go into several files with an
    index, as Hugging Face writes them. Needs memory for one of the files, in addition to the parameters.

    Args:
        folder: exists. None if another process writes and only needs this process's parts of the parameters.
        config: the shape.
        params: all of one dtype.

    Raises:
        OSError: the folder cannot be written.
    """
    leaves = _by_name(config, params)
    groups = _group_by_file(leaves)
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


def _group_by_file(leaves: Mapping[str, jax.Array]) -> list[list[str]]:
    """For each file to write, the names of its tensors."""
    groups: list[list[str]] = []
    free_bytes = 0
    for name, leaf in leaves.items():
        if not groups or leaf.nbytes > free_bytes:
            groups.append([])
            free_bytes = MAX_FILE_BYTES
        groups[-1].append(name)
        free_bytes -= leaf.nbytes
    return groups


def write_config(folder: Path, config: T5Config, params: Params) -> None:
    """Writes the config.json of a Hugging Face folder."""
    fields = {**config.to_hugging_face(), "dtype": str(params["shared"].dtype)}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


META_FILE = "meta_classifier.safetensors"
"""The exit classifier's file, beside the weights that it was trained with."""


def write_meta(folder: Path, meta: ExitClassifier) -> None:
    """Writes an exit classifier into a checkpoint folder."""
    save_file({name: np.asarray(value) for name, value in vars(meta).items()}, folder / META_FILE)


def read_meta(folder: Path, config: T5Config) -> ExitClassifier:
    """Reads the exit classifier of a checkpoint folder.

    Raises:
        ValueError: the file is damaged, or belongs to another model.
    """
    file = _SafetensorsFile(folder / META_FILE)
    expected: dict[str, tuple[int, ...]] = {"weight": (config.d_model,), "bias": ()}
    check_shapes(folder / META_FILE, file.shapes, expected)
    return ExitClassifier(**{name: jnp.asarray(file.read(name)) for name in expected})


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder. If the block succeeds, its files move to `folder`; otherwise they are deleted."""
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        yield partial
        folder.mkdir(parents=True, exist_ok=True)
        # config.json moves last, because a folder without it is not taken for a checkpoint.
        for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "config.json"):
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
