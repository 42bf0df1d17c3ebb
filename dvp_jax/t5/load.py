"""`load_model` and its inverse: a T5 with its parameters and its tokenizer, from a folder or the hub."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh
from tqdm import tqdm

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.hugging_face import (
    DTYPES,
    META_FILE,
    atomic_folder,
    check_shapes,
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
from dvp_jax.t5.sharding import check_mesh, pad_vocabulary, place, several_processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
FORMATS = ("huggingface", "orbax")


@dataclasses.dataclass(frozen=True)
class Model:
    """A T5 ready to decode."""

    config: T5Config
    params: Params
    tokenizer: PreTrainedTokenizerBase | None = None
    mesh: Mesh | None = None  # of the devices that hold the parameters; None for one device

    @functools.cached_property
    def screen(self) -> Int8Unembedding:
        """The int8 copy of the unembedding, made when first asked for."""
        return quantize_unembedding(unembedding(self.config, self.params))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the parameters: the same for the same numbers, whatever file they came from."""
        hashed = hashlib.blake2b(digest_size=16)
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
        }
        for name, value in sorted(leaves.items()):
            array = stored_tensor(self.config, name, value)
            hashed.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hashed.update(array.tobytes())
        return hashed.hexdigest()


def load_model(
    path: str | Path, dtype: str = "float32", *, progress: bool = False, mesh: Mesh | None = None
) -> Model:
    """Loads a T5, T5 1.1, Flan-T5, mT5 or UMT5 checkpoint.

    Args:
        path: a Hugging Face folder, a folder that `save_model(..., format="orbax")` wrote, or a hub id
            such as "google-t5/t5-large".
        dtype: of the parameters, "float32" or "bfloat16".
        progress: show a bar over tensors.
        mesh: spread the parameters over devices, as `dvp_jax.t5.sharding` says; its axes are "data" and "model".
            Each process reads the shards of its own devices. Decoding and training then use the mesh; if it is of
            several processes, all of them must make the same calls.

    Raises:
        FileNotFoundError: no such folder or hub repository, or no config.json or weights in it.
        ValueError: unknown dtype, a damaged file, tensors that do not fit config.json (all are listed), NaN
            or infinite weights, another model type, a mesh that does not fit the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    folder = Path(path) if Path(path).is_dir() else _download(str(path))

    def bar(items: Any) -> Any:
        return tqdm(list(items), desc="loading", unit="tensor", disable=not progress)

    if mesh is not None:
        mesh = check_mesh(T5Config.from_file(folder / "config.json"), mesh)
    if (folder / "params").is_dir():
        config, params = _read_orbax(folder, dtype, mesh)
    else:
        config, params = read_checkpoint(folder, dtype, bar, mesh)
    if (folder / META_FILE).is_file():
        params["meta"] = place(mesh, read_meta(folder, config))
    return Model(config, params, load_tokenizer(folder), mesh)


def shard_model(model: Model, mesh: Mesh | None) -> Model:
    """A model that is in memory, on the devices of a mesh; without one as it is.

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
    """Writes a checkpoint with its tokenizer: whole or not at all.

    Args:
        folder: need not exist; must hold no checkpoint.
        model: what to write. Where several processes hold it, all of them must call this; process 0 writes.
        format: "huggingface" (config.json, and model.safetensors or several files with an index) or "orbax"
            (config.json and params/). A meta classifier goes into a file of its own beside them.

    Raises:
        FileExistsError: the folder holds a checkpoint already.
        ValueError: unknown format, or one that several processes do not write.
        OSError: the folder cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    several = several_processes(model.mesh)
    if several and format != "huggingface":
        raise ValueError(f"format is {format!r}; allowed of a model that several processes hold: huggingface")
    params = {name: value for name, value in model.params.items() if name != "meta"}
    if several and jax.process_index() > 0:
        write_checkpoint(None, model.config, params)
        return
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a checkpoint already")
    with atomic_folder(folder) as partial:
        if format == "huggingface":
            write_checkpoint(partial, model.config, params)
        else:
            params = without_padding(model.config, params)
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((partial / "params").absolute(), params)
            write_config(partial, model.config, params)
        if "meta" in model.params:
            write_meta(partial, model.params["meta"])
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a checkpoint folder, or None where there is none."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    # transformers warns at length about every prompt that is longer than the pretraining's 512 tokens.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _read_orbax(folder: Path, dtype: str, mesh: Mesh | None) -> tuple[T5Config, Params]:
    config = T5Config.from_file(folder / "config.json")
    stored_in = (folder / "params").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = traverse_util.flatten_dict(checkpointer.metadata(stored_in).item_metadata.tree)
        except (ValueError, OSError, AttributeError) as error:
            raise ValueError(f"{stored_in} is not a whole Orbax checkpoint: {error}") from None
        config = dataclasses.replace(config, tie_word_embeddings=("lm_head",) not in stored)
        expected = parameter_shapes(config)
        check_shapes(
            folder,
            {"/".join(path): tuple(leaf.shape) for path, leaf in stored.items()},
            {"/".join(path): shape for path, shape in expected.items()},
        )
        config, target = parameter_targets(config, dtype, mesh)
        # Not strict about shapes, which were checked: what the file lacks of a padded vocabulary is zeros.
        params = checkpointer.restore(stored_in, traverse_util.unflatten_dict(target), strict=False)
    if not_finite := [
        "/".join(path)
        for path, leaf in traverse_util.flatten_dict(params).items()
        if not bool(jnp.isfinite(leaf).all())
    ]:
        raise ValueError(f"{folder}: NaN or infinity in {', '.join(not_finite)}")
    return config, params


def _download(repository: str) -> Path:
    """Fetches a hub repository: safetensors where it has them, else PyTorch's files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    small = ["*.json", "spiece.model"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*small, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*small, "pytorch_model*.bin"]))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"{repository} is neither a folder nor a hub repository that can be reached: {error}"
        ) from None
    return folder
