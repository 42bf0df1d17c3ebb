"""Reads and writes Hugging Face checkpoints, one tensor at a time.

Both sides store weights (outputs, inputs), so conversion renames tensors and never transposes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from dvp_jax.t5.files import check_fetched, read_json
from dvp_jax.t5.model import T5, Params
from dvp_jax.t5.sharding import pad_vocabulary, shardings, to_host

DTYPES = ("float32", "bfloat16")
_STORED_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that weights may have in a file, by their names in safetensors."""

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


# A bias that some files have and that Hugging Face ignores too.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNEMBEDDING = "lm_head.weight"


class TensorFiles:
    """The tensors of a Hugging Face folder by name. Each is read when it is opened.

    Args:
        folder: has `model.safetensors`, or `model.safetensors.index.json` and the files that it lists, or the same
            as `pytorch_model` and `.bin` (read with PyTorch and `weights_only=True`).

    Raises:
        FileNotFoundError: no weights, or a file that the index lists is missing.
        ValueError: a file is truncated or is not of the format that its ending says; an index that names a file
            outside the folder, or a tensor that is not in its file.
    """

    def __init__(self, folder: Path) -> None:
        for stem, ending, kind in (
            ("model", "safetensors", _SafetensorsFile),
            ("pytorch_model", "bin", _PytorchFile),
        ):
            single, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
            if single.is_file():
                reader = kind(single)
                self._reader_of: dict[str, Any] = dict.fromkeys(reader.shapes, reader)
                return
            if index.is_file():
                self._reader_of = _indexed(index, kind)
                return
        raise FileNotFoundError(
            f"{folder} has no weights; looked for model.safetensors, pytorch_model.bin and their index files"
        )

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

    def dtype(self, name: str) -> str:
        """Name of a tensor's dtype; does not read it."""
        return self._reader_of[name].dtypes[name]


def _indexed(index: Path, kind: Callable[[Path], Any]) -> dict[str, Any]:
    """The reader of each tensor that an index lists."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not a Hugging Face weight index: weight_map is {str(weight_map)[:50]}")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{index} names {', '.join(outside)}; allowed: files in the folder")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index} names {', '.join(missing)}, not in the folder")
    readers = {name: kind(index.parent / name) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in readers[name].shapes:
            raise ValueError(f"{index} names {tensor} in {name}, which does not have it")
    return {tensor: readers[name] for tensor, name in weight_map.items()}


class _SafetensorsFile:
    """A file that is read one slice at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_fetched(path)
        try:
            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self.shapes = {name: tuple(stored.get_shape()) for name, stored in slices.items()}
                codes = {name: stored.get_dtype() for name, stored in slices.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or is not a safetensors file: {error}") from None
        self.dtypes = {name: _STORED_DTYPES.get(code, code) for name, code in codes.items()}

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
        check_fetched(path)
        try:
            self._tensors = dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load has no error class of its own
            raise ValueError(f"{path} {_what_pytorch_has_not_read(path, error)}") from None
        if wrong := [str(name) for name, value in self._tensors.items() if not _has_values(value)]:
            raise ValueError(f"{path}: {_first(wrong)}; allowed: tensors with their values, not sparse")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in self._tensors.items()}
        self._uint8 = torch.uint8

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[np.ndarray]:
        tensor = self._tensors.pop(name).detach()  # so that its memory is freed when the caller is done
        yield tensor.contiguous().view(self._uint8).numpy().view(jnp.dtype(self.dtypes[name]))


def _has_values(value: Any) -> bool:
    """Whether an entry of a `.bin` file is a tensor that is neither sparse nor only a shape ("meta")."""
    import torch

    return torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


def _what_pytorch_has_not_read(path: Path, error: Exception) -> str:
    """Says why `torch.load` has not read a file, in one line."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    with contextlib.suppress(Exception):  # a truncated file
        if classes := get_unsafe_globals_in_checkpoint(path):
            return f"holds {classes[0]}; allowed: a state dict, as torch.save(model.state_dict(), path) writes"
    return f"is truncated or is not a PyTorch state dict: {(str(error) or repr(error)).splitlines()[0]}"


def read_checkpoint(
    folder: Path,
    config: T5Config,
    dtype: str = "float32",
    progress: Callable[[Iterator], Iterator] = iter,
    mesh: Mesh | None = None,
) -> tuple[T5Config, Params]:
    """Reads the weights of a Hugging Face folder. Needs memory for the parameters and one more tensor.

    With a mesh, each process reads only the shards of its own devices. As in Hugging Face, the embedding has four
    names, of which a file needs one. The unembedding is untied if `lm_head.weight` differs from the embedding,
    whatever config.json says.

    Args:
        folder: has the weights.
        config: of the folder.
        dtype: dtype of all parameters, "float32" or "bfloat16".
        progress: wraps the iterator over parameters, for a progress bar.
        mesh: devices to put the parameters on; None for the default device.

    Returns:
        The config and the parameters in the layout of `dvp_jax.t5.model`.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: a file is damaged; tensors are missing, superfluous or of the wrong shape or dtype; two
            embeddings; a tensor contains NaN or infinity, or overflows `dtype`; a mesh that does not fit the
            model.
    """
    tensors = TensorFiles(folder)
    stored = {name: tensors.shape(name) for name in tensors if name != _IGNORED}
    embedding, *copies = [name for name in (*_EMBEDDING, _UNEMBEDDING) if name in tensors] or _EMBEDDING[:1]

    def name_of(path: ParameterPath) -> str:
        return embedding if path == ("shared",) else hugging_face_name(path, config)

    check_sizes(folder, config, stored, name_of)
    untied = _UNEMBEDDING in copies
    config = dataclasses.replace(config, tie_word_embeddings=not untied)
    shapes = parameter_shapes(config)
    names = {path: name_of(path) for path in shapes}
    copies = [name for name in copies if name != _UNEMBEDDING]
    expected = {names[path]: shape for path, shape in shapes.items()}
    expected |= dict.fromkeys(copies, shapes[("shared",)])
    check_shapes(folder, stored, expected)
    _check_dtypes(folder, {name: tensors.dtype(name) for name in expected})

    config, targets = parameter_targets(config, dtype, mesh)
    not_finite = []

    def read(path: ParameterPath, name: str) -> jax.Array:
        with tensors.open(name) as tensor:

            def read_part(index: tuple[slice, ...]) -> np.ndarray:
                with np.errstate(over="ignore"):
                    part = tensor[index].astype(targets[path].dtype, copy=False)
                if not np.isfinite(part.astype(np.float32, copy=False)).all():
                    not_finite.append(name)
                return part

            return _make_array(targets[path], shapes[path], read_part)

    flat = {path: read(path, names[path]) for path in progress(iter(names))}
    if not_finite:
        raise ValueError(f"{folder}: NaN or infinity in {', '.join(dict.fromkeys(not_finite))}, as {dtype}")
    for name in copies:
        if not jnp.array_equal(read(("shared",), name), flat[("shared",)]):
            raise ValueError(f"{folder}: {name} differs from {embedding}; allowed: one embedding")
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


_FIRST_LAYER = ("decoder", "layers_0")
_SIZE_OF: dict[str, tuple[ParameterPath, int]] = {
    "vocab_size": (("shared",), 0),
    "d_model": (("shared",), 1),
    "d_ff": ((*_FIRST_LAYER, "feed_forward", "wi"), 0),
    "relative_attention_num_buckets": ((*_FIRST_LAYER, "self_attention", "relative_bias"), 0),
    "num_heads": ((*_FIRST_LAYER, "self_attention", "relative_bias"), 1),
    "d_kv": ((*_FIRST_LAYER, "self_attention", "query"), 0),  # for each head, which were compared before
}
"""For fields of a config: a parameter and which of its dimensions has that size."""


def check_sizes(
    folder: Path,
    config: T5Config,
    stored: Mapping[str, tuple[int, ...]],
    name_of: Callable[[ParameterPath], str],
) -> None:
    """Refuses a config of other sizes than the weights have, before a model of these sizes is traced.

    Args:
        folder: the checkpoint, for the error.
        config: its config.
        stored: shapes of the tensors in the checkpoint, by name.
        name_of: the name of a parameter there.

    Raises:
        ValueError: names the field and its size in the weights.
    """
    for stack, field in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        layer = re.compile(rf"\b{stack}\b.*?(?:\bblock\b|/layers_)\D*(\d+)")
        depth = 1 + max((int(match[1]) for name in stored if (match := layer.search(name))), default=-1)
        if not depth:
            raise ValueError(f"{folder}: the weights have no T5 {stack}; allowed: those of an encoder and decoder")
        _check_size(folder, config, field, depth, f"the {stack} layers of the weights")
    for field, (path, dimension) in _SIZE_OF.items():
        if len(shape := stored.get(name_of(path), ())) == 2:
            size = shape[dimension] // (config.num_heads if field == "d_kv" else 1)
            _check_size(folder, config, field, size, f"as {name_of(path)}")


def _check_size(folder: Path, config: T5Config, field: str, size: int, where: str) -> None:
    if (value := getattr(config, field)) != size:
        raise ValueError(f"{folder / 'config.json'}: {field} is {value}; allowed: {size}, {where}")


def _check_dtypes(where: Path, dtypes: Mapping[str, str]) -> None:
    """Raises ValueError where a tensor has another dtype than `_STORED_DTYPES`."""
    allowed = _STORED_DTYPES.values()
    if wrong := [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in allowed]:
        more = f" and {len(wrong) - 1} more tensors are such" if len(wrong) > 1 else ""
        raise ValueError(f"{where}: {wrong[0]}{more}; allowed: {', '.join(allowed)}")


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
        ValueError: names one tensor that is missing, superfluous or of another shape, and counts the others.
    """
    if wrappers := _wrappers(stored, expected):
        raise ValueError(
            f"{folder}: names of tensors contain {', '.join(wrappers)}, as {next(iter(stored))}; "
            "allowed: those of a whole model, unwrapped and merged before it was saved"
        )
    problems = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in stored],
        "not of this model": [f"{name} {shape}" for name, shape in stored.items() if name not in expected],
        "wrong shape": [
            f"{name} {stored[name]}, {config} says {shape}"
            for name, shape in expected.items()
            if name in stored and stored[name] != shape
        ],
    }
    if said := [f"{kind}: {_first(found)}" for kind, found in problems.items() if found]:
        raise ValueError(f"{folder}: the tensors do not fit {config}; {'; '.join(said)}")


def _first(found: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    return f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else found[0]


def _wrappers(stored: Iterable[str], expected: Iterable[str]) -> list[str]:
    """What stands between the parts of names that are right without it, such as "module" or "lora_A"."""
    known = {part for name in expected for part in name.split(".")}
    found: dict[str, None] = {}
    for name in stored:
        parts = name.split(".")
        if ".".join(part for part in parts if part in known) in expected:
            found |= dict.fromkeys(part for part in parts if part not in known)
    return list(found)


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
            _save_tensors(tensors, folder / f"model{part}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, f"model{part}.safetensors")
    if folder is None:
        return
    if len(groups) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_config(folder, config, params)


def _save_tensors(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of any new file: safetensors gives its owner some alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


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
    _save_tensors({name: np.asarray(value) for name, value in vars(meta).items()}, folder / META_FILE)


def read_meta(folder: Path, config: T5Config) -> ExitClassifier:
    """Reads the exit classifier of a checkpoint folder.

    Raises:
        ValueError: the file is damaged, belongs to another model, or contains NaN or infinity.
    """
    file = _SafetensorsFile(folder / META_FILE)
    expected: dict[str, tuple[int, ...]] = {"weight": (config.d_model,), "bias": ()}
    check_shapes(file.path, file.shapes, expected)
    _check_dtypes(file.path, file.dtypes)
    tensors = {name: jnp.asarray(file.read(name)) for name in expected}
    if not_finite := [name for name, value in tensors.items() if not bool(jnp.isfinite(value).all())]:
        raise ValueError(f"{file.path}: NaN or infinity in {', '.join(not_finite)}")
    return ExitClassifier(**tensors)
