"""The checkpoints of a training run, written by Orbax while training continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dvp_jax.t5.hugging_face import check_shapes
from dvp_jax.t5.sharding import to_host

State = TypeVar("State")


class DamagedCheckpointError(ValueError):
    """A checkpoint cannot be read, or is not what was saved."""


class Checkpoints:
    """The checkpoints in a folder, each under its step. A checkpoint gets its name only once it is complete.

    Each has a checksum of its arrays and its loss, which is compared when it is read.

    Args:
        folder: created if it does not exist. What an interrupted save has left there is removed.
        keep: how many of the latest checkpoints are kept, besides the one with the lowest validation loss.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        # Orbax logs each file that it writes, and asyncio each write that fails on a full disk. `_write` raises
        # one error for all of them.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

        def loss(metrics: Any) -> float:
            return metrics["loss"]

        self._folder = folder
        _remove_broken_losses(folder)
        latest = checkpoint_managers.LatestN(keep)
        best = checkpoint_managers.BestN(
            get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=loss,
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
            cleanup_tmp_directories=True,
        )
        # Without a handler from the start, the checkpoints of an earlier run have no metadata.
        self._manager = ocp.CheckpointManager(
            folder.absolute(), item_handlers=ocp.StandardCheckpointHandler(), options=options
        )
        self._saving: int | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except OSError:
            if error is None:  # an earlier error is the one to raise
                raise
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Returns the step with the lowest validation loss, or the latest step if no loss was measured.

        None if there is no checkpoint.
        """
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def save(self, step: int, state: Any, loss: float | None) -> None:
        """Waits until the previous checkpoint is written, and starts to write the next.

        Args:
            step: the number of steps taken.
            state: a tree of arrays.
            loss: the validation loss; None if there is no validation.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        # The next step may reuse the buffers of `state` before they are on the disk.
        copy = jax.tree.map(jnp.copy, state)
        self._saving = step
        metrics = None if loss is None else {"loss": loss}
        metadata = {"checksum": _checksum(copy, loss)}
        self._write(
            lambda: self._manager.save(
                step, args=ocp.args.StandardSave(copy), metrics=metrics, custom_metadata=metadata
            )
        )

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        self._write(self._manager.wait_until_finished)
        self._saving = None

    def _write(self, write: Callable[[], Any]) -> None:
        """Calls a function that writes, and names the checkpoint if it fails."""
        try:
            write()
        except Exception as error:  # each layer of Orbax and TensorStore has its own for a full disk
            saving, self._saving = self._saving, None
            complete = [step for step in self.steps() if step != saving]
            last = f"the last whole one is of step {complete[-1]}" if complete else "there is no earlier one"
            raise OSError(
                f"{self._folder}: the checkpoint of step {saving} could not be written ({error}); {last}"
            ) from error

    def restore_latest(self, like: State) -> State:
        """Reads the latest checkpoint that is whole, and removes damaged ones of later steps with a warning.

        Args:
            like: as in `restore`. There must be a checkpoint.

        Raises:
            ValueError: as `restore`, or no checkpoint is whole. Nothing is removed then.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, like)
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
                continue
            for later, message in damaged.items():
                warnings.warn(f"{message}. It is removed, and the run goes on from step {step}", stacklevel=2)
                self._manager.delete(later)
            return state
        raise ValueError(f"{'. '.join(damaged.values())}. Allowed: a whole checkpoint, or another workdir")

    def restore(self, step: int, like: State) -> State:
        """Reads the checkpoint of a step.

        Args:
            step: a step that has a checkpoint.
            like: a state of this run. The restored arrays get its shapes, dtypes and shardings.

        Raises:
            ValueError: the checkpoint has other arrays.
            DamagedCheckpointError: it cannot be read, or is not what was saved.
        """
        folder = self._folder / str(step)
        with _damage_named(folder):
            metadata = self._manager.metadata(step)
            stored = _shapes(metadata.item_metadata)
            loss = metadata.metrics.get("loss")
            checksum = metadata.custom_metadata["checksum"]
        check_shapes(folder, stored, _shapes(like), "this run")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        with _damage_named(folder):
            state = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        if _checksum(state, loss) != checksum:
            raise DamagedCheckpointError(f"{folder} is damaged: its checksum is another")
        return state


@contextlib.contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Names the folder of a checkpoint that cannot be read."""
    try:
        yield
    except Exception as error:  # each layer of Orbax and TensorStore has its own for a file that is cut short
        line = " ".join(str(error).split())[:200]
        raise DamagedCheckpointError(f"{folder} is damaged: {line}") from error


def _remove_broken_losses(folder: Path) -> None:
    """Removes files of validation losses that are not JSON, at which Orbax would stop when it lists a folder.

    The checkpoint's checksum tells that its loss is missing.
    """
    for path in folder.glob("*/metrics/metrics"):
        try:
            float(json.loads(path.read_bytes())["loss"])
        except (ValueError, KeyError, TypeError, OSError):  # OSError: another process has removed it
            shutil.rmtree(path.parent, ignore_errors=True)


def _checksum(state: Any, loss: float | None) -> str:
    """Returns a hash of all arrays and the loss. If several processes hold the arrays, all must call this."""
    hashed = hashlib.sha256(repr(loss).encode())
    for leaf in jax.tree.leaves(state):
        hashed.update(np.ascontiguousarray(to_host(leaf)).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array under its path.

    Orbax may restore other kinds of containers than it has saved, so that only names and indices are compared.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path): tuple(
            leaf.shape
        )
        for path, leaf in leaves
    }
