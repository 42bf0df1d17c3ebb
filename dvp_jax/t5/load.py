"""Loads a T5 with its parameters and its tokenizer from a folder or the hub, and saves it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from dvp_jax.runs.files import write_folder
from dvp_jax.t5.byte_pieces import use_byte_pieces
from dvp_jax.t5.common_tokens import read_common_tokens, write_common_tokens
from dvp_jax.t5.config import GENERATION_FILE, T5Config, read_generation_config
from dvp_jax.t5.files import check_fetched, read_json
from dvp_jax.t5.hugging_face import (
    DTYPES,
    META_FILE,
    check_shapes,
    check_sizes,
    parameter_shapes,
    parameter_targets,
    read_checkpoint,
    read_meta,
    stored_tensor,
    without_padding,
    write_checkpoint,
    write_config,
    write_meta,
)
from dvp_jax.t5.int8 import Int8Unembedding, quantize_unembedding
from dvp_jax.t5.model import Params, unembedding
from dvp_jax.t5.sharding import check_mesh, pad_vocabulary, place, spans_processes, use_mesh
from dvp_jax.t5.stacked import StackedKeysValues, stack_keys_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "*.model", "*.spm", "special_tokens_map.json")
"""What the files of a tokenizer are called, of any class."""
FORMATS = ("huggingface", "orbax")
PRECISIONS = ("default", "high", "highest")


@dataclasses.dataclass(frozen=True)
class Model:
    """A T5 that is ready to decode.

    Attributes:
        config: the shape.
        params: laid out as `dvp_jax.t5.model` says.
        tokenizer: None if the checkpoint has none. Functions that take or return text need one.
        mesh: the devices that hold the parameters; None for the default device.
        precision: of the matrix products, one of JAX's names in `PRECISIONS`. On a GPU or TPU, "default" rounds
            float32 factors to fewer bits, which changes some generated tokens. On a CPU all are the same. None
            takes "highest" for float32, and JAX's own setting for bfloat16, whose products are exact.
        common_tokens: ids, the commonest first, for `prune_rule="recent"`; None if the checkpoint has none
            (scripts/count_tokens.py writes them).
        generation_config: fields of the checkpoint's generation_config.json, or of config.json where there is no
            such file, to be kept when it is saved. The token ids are in `config`.

    Raises:
        ValueError: unknown precision.
    """

    config: T5Config
    params: Params
    tokenizer: PreTrainedTokenizerBase | None = None
    mesh: Mesh | None = None
    precision: str | None = None
    common_tokens: Int[np.ndarray, " some"] | None = None
    generation_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """A context in which traced programs are for the model's mesh and multiply at its precision."""
        with use_mesh(self.mesh), use_precision(self.precision, self.params["shared"].dtype):
            yield

    @functools.cached_property
    def int8_unembedding(self) -> Int8Unembedding:
        """The int8 copy of the unembedding, made when it is first used."""
        return quantize_unembedding(unembedding(self.config, self.params))

    @functools.cached_property
    def stacked_keys_values(self) -> StackedKeysValues:
        """The key and value weights of all decoder layers in one array, made when they are first used."""
        return stack_keys_values(self.params)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the parameters and the common tokens. It does not depend on the checkpoint's file format."""
        hashed = hashlib.blake2b(digest_size=16)
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
        }
        for name, value in sorted(leaves.items()):
            array = stored_tensor(self.config, name, value)
            hashed.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hashed.update(array.tobytes())
        if self.common_tokens is not None:
            hashed.update(self.common_tokens.tobytes())
        return hashed.hexdigest()


def check_precision(precision: str | None) -> None:
    """Raises ValueError unless the precision is None or one of `PRECISIONS`."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed: None, {', '.join(PRECISIONS)}")


def use_precision(precision: str | None, dtype: jnp.dtype | str) -> contextlib.AbstractContextManager[object]:
    """A context in which traced programs multiply at a precision.

    Args:
        precision: as `Model.precision`.
        dtype: of the factors.
    """
    if precision is None and jnp.dtype(dtype) == jnp.float32:
        precision = "highest"
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)


def load_model(
    path: str | Path,
    dtype: str = "float32",
    *,
    progress: bool = False,
    mesh: Mesh | None = None,
    precision: str | None = None,
) -> Model:
    """Loads a T5, T5 1.1, Flan-T5, mT5 or UMT5 checkpoint.

    Args:
        path: a Hugging Face folder, a folder that `save_model(..., format="orbax")` wrote, or a hub id,
            for example "google-t5/t5-large".
        dtype: dtype of the parameters, "float32" or "bfloat16".
        progress: whether to show a progress bar over tensors.
        mesh: devices to divide the parameters over, with the axes "data" and "model" (`dvp_jax.t5.sharding`).
            Each process reads the shards of its own devices. Decoding and training then use the mesh. If it has
            devices of several processes, all of them must make the same calls.
        precision: of the matrix products: "default", "high" or "highest". None takes "highest" for float32
            (`Model.precision`).

    Returns:
        The model. Its parameters have the key "meta" if the folder has an exit classifier.

    Raises:
        FileNotFoundError: no such folder or hub repository, or no config.json or weights in it.
        ValueError: unknown dtype or precision, a damaged file (by its checksum, if `save_model` wrote it), an
            impossible value in config.json or generation_config.json, another model type, a quantized model, an
            adapter, a tokenizer that is not whole or has more ids than the model, common tokens of another
            vocabulary, tensors that do not fit config.json, weights that are NaN or infinite in `dtype`, a mesh
            that does not fit the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    check_precision(precision)
    folder = Path(path) if Path(path).is_dir() else _download(str(path))
    _check_sums(folder)

    def progress_bar(items: Any) -> Any:
        return tqdm(list(items), desc="loading", unit="tensor", disable=not progress)

    # Everything that is small is read, and refused, before the weights.
    config = T5Config.from_folder(folder)
    if mesh is not None:
        mesh = check_mesh(config, mesh)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    common = read_common_tokens(folder, config.vocab_size)
    meta = read_meta(folder, config) if (folder / META_FILE).is_file() else None
    generation = read_generation_config(folder)
    if (folder / "params").is_dir():
        config, params = _read_orbax(folder, config, dtype, mesh)
    else:
        config, params = read_checkpoint(folder, config, dtype, progress_bar, mesh)
    if meta is not None:
        params["meta"] = place(mesh, meta)
    return Model(config, params, tokenizer, mesh, precision, common, generation)


def shard_model(model: Model, mesh: Mesh | None) -> Model:
    """Moves a loaded model to the devices of a mesh; returns it as it is if the mesh is None.

    Raises:
        ValueError: the mesh does not fit the model.
    """
    if mesh is None:
        return model
    mesh = check_mesh(model.config, mesh)
    config = pad_vocabulary(model.config, mesh)
    rows = ((0, config.vocab_padding), (0, 0))
    params = without_padding(model.config, model.params)
    padded: Params = {name: jnp.pad(params[name], rows) for name in ("shared", "lm_head") if name in params}
    return dataclasses.replace(model, config=config, params=place(mesh, {**params, **padded}), mesh=mesh)


def save_model(folder: str | Path, model: Model, format: str = "huggingface") -> None:
    """Writes a checkpoint with its tokenizer. If that fails, the folder is left as it was.

    The file SHA256SUMS lists checksums of the weights, which `load_model` compares.

    Args:
        folder: must not exist, or be empty.
        model: what to write. If several processes hold it, all of them must call this; process 0 writes.
        format: "huggingface" (config.json, and model.safetensors or several files with an index) or "orbax"
            (config.json and params/). An exit classifier goes into a file of its own beside them.

    Raises:
        FileExistsError: the folder holds files already.
        ValueError: unknown format, or "orbax" for a model that several processes hold.
        OSError: the folder cannot be written, or another process is writing it.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    many_processes = spans_processes(model.mesh)
    if many_processes and format != "huggingface":
        raise ValueError(f"format is {format!r}; allowed for a model that several processes hold: huggingface")
    if many_processes and jax.process_index() > 0:
        write_checkpoint(None, model.config, _without_meta(model.params))
        return
    with write_folder(folder) as partial:
        write_model(partial, model, format)


def write_model(folder: Path, model: Model, format: str) -> None:
    """Writes a checkpoint into a folder of `write_folder`, as `save_model` does."""
    params = _without_meta(model.params)
    if format == "huggingface":
        write_checkpoint(folder, model.config, params)
    else:
        params = without_padding(model.config, params)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), params)
        write_config(folder, model.config, params)
    if "meta" in model.params:
        write_meta(folder, model.params["meta"])
    weights = [path for path in (*folder.glob("*.safetensors"), *folder.glob("params/**/*")) if path.is_file()]
    sums = [f"{_sum(path)}  {path.relative_to(folder)}\n" for path in sorted(weights)]
    (folder / _SUMS_FILE).write_text("".join(sums), encoding="utf-8")
    if model.common_tokens is not None:
        write_common_tokens(folder, model.common_tokens, model.config.vocab_size)
    if model.generation_config:
        generation = {**model.generation_config, **model.config.token_ids()}
        (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _without_meta(params: Params) -> Params:
    return {name: value for name, value in params.items() if name != "meta"}


_SUMS_FILE = "SHA256SUMS"
"""As the command `sha256sum` writes and checks it."""


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sums(folder: Path) -> None:
    """Raises ValueError if weights of a folder are not those that `save_model` wrote."""
    sums = folder / _SUMS_FILE
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        value, name = line[:64], line[66:]  # between them, a space or "*" says how sha256sum has read the file
        path = folder / name
        if not (path.is_file() and _sum(path) == value):
            raise ValueError(
                f"{path} is damaged or missing; allowed: the file whose checksum is in {_SUMS_FILE} (copy it "
                f"again, or delete {_SUMS_FILE} if it was changed on purpose)"
            )


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint folder, or None if it has none.

    Args:
        folder: of the checkpoint.
        vocab_size: V, the number of ids that the model embeds; None for any number.

    Raises:
        ValueError: a file is missing or not whole, or the tokenizer has more than V ids.
    """
    found = (path for pattern in _TOKENIZER_FILES for path in sorted(folder.glob(pattern)))
    files = {path.name: path for path in found if path.is_file()}
    if not files:
        return None
    for path in files.values():
        if path.suffix == ".json":
            read_json(path)
        elif "tokenizer.json" not in files:  # else nothing reads them
            _check_vocabulary(path)
    from transformers import AutoTokenizer, T5Tokenizer

    # AutoTokenizer does not find spiece.model for UMT5, nor where tokenizer_config.json says MT5Tokenizer.
    spiece_alone = "spiece.model" in files and "tokenizer.json" not in files
    # transformers warns about every prompt that is longer than the 512 tokens of pretraining.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    reader = T5Tokenizer if spiece_alone else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = reader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any class: the tokenizers' own, and those of three libraries
        what = f"{folder}: the tokenizer of {', '.join(files)} cannot be read"
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from None
    # Without its vocabulary, transformers makes a tokenizer of the special tokens alone.
    names = sorted({*tokenizer.vocab_files_names.values(), "tokenizer.json", "tokenizer.model"})
    if tokenizer.vocab_files_names and files.keys().isdisjoint(names):
        kind = type(tokenizer).__name__
        raise ValueError(f"{folder} has no vocabulary of its {kind}; allowed: one of {', '.join(names)}")
    count = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if vocab_size is not None and count > vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {count} ids; allowed: at most {vocab_size}, as the embedding"
        )
    use_byte_pieces(tokenizer, folder)
    return tokenizer


def _check_vocabulary(path: Path) -> None:
    """Raises ValueError where a vocabulary is not whole, as far as its format shows that."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    check_fetched(path)
    if path.suffix in (".model", ".spm"):
        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        with contextlib.suppress(DecodeError):
            proto.ParseFromString(path.read_bytes())
        if not proto.HasField("normalizer_spec"):  # the last part of every file
            raise ValueError(f"{path} is truncated or is not a SentencePiece model")


def _read_orbax(folder: Path, config: T5Config, dtype: str, mesh: Mesh | None) -> tuple[T5Config, Params]:
    """Reads a folder that `save_model(..., format="orbax")` wrote. Raises ValueError as `load_model` does."""
    params_folder = (folder / "params").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        with _damage_named(params_folder):
            stored = traverse_util.flatten_dict(checkpointer.metadata(params_folder).item_metadata.tree)
        shapes = {"/".join(path): tuple(leaf.shape) for path, leaf in stored.items()}
        check_sizes(folder, config, shapes, "/".join)
        config = dataclasses.replace(config, tie_word_embeddings=("lm_head",) not in stored)
        check_shapes(folder, shapes, {"/".join(path): shape for path, shape in parameter_shapes(config).items()})
        config, target = parameter_targets(config, dtype, mesh)
        with _damage_named(params_folder):
            # strict=False fills the vocabulary's padding with zeros. All other shapes were checked above.
            params = checkpointer.restore(params_folder, traverse_util.unflatten_dict(target), strict=False)
    if not_finite := [
        "/".join(path)
        for path, leaf in traverse_util.flatten_dict(params).items()
        if not bool(jnp.isfinite(leaf).all())
    ]:
        raise ValueError(f"{folder}: NaN or infinity in {', '.join(not_finite)}, as {dtype}")
    return config, params


@contextlib.contextmanager
def _damage_named(params_folder: Path) -> Iterator[None]:
    """Names the folder of arrays that Orbax cannot read."""
    try:
        yield
    except Exception as error:  # of any class: Orbax, TensorStore and Python have each their own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(f"{params_folder} is not a complete Orbax checkpoint: {reason}") from None


_WEIGHT_FILES = {"model": "safetensors", "pytorch_model": "bin"}
"""The names of weights in one file or several. Variants, such as model.fp16.safetensors, have other names."""


def _download(repository: str) -> Path:
    """Downloads a hub repository: its safetensors files, or PyTorch's if it has none. Returns the folder."""
    from huggingface_hub import snapshot_download

    small = ["*.json", *_TOKENIZER_FILES, META_FILE]
    try:
        for stem, ending in _WEIGHT_FILES.items():
            weights = [f"{stem}.{ending}", f"{stem}-?????-of-?????.{ending}"]
            folder = Path(snapshot_download(repository, allow_patterns=[*small, *weights]))
            if any(path for pattern in weights for path in folder.glob(pattern)):
                break
    except Exception as error:  # of any class: the hub's own, and those of its library for HTTP
        what = f"{repository} is neither a folder nor a hub repository that can be reached"
        raise FileNotFoundError(f"{what}: {' '.join(str(error).split())}") from None
    return folder
