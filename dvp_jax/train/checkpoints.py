"""Checkpoints of a training run, by Orbax: asynchronous, the latest few and the best."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dvp_jax.t5.hugging_face import check_shapes

State = TypeVar("State")


class Checkpoints:
    """The checkpoints in a folder, one a step. A checkpoint has its name only once it is whole.

    Args:
        folder: made where it is missing; what an interrupted save left there is removed.
        keep: how many of the latest to keep, beside the one with the lowest validation loss.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        # Orbax tells of each file that it writes, and asyncio of each write that a full disk ended: ours is the
        # one message.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

        def loss(metrics: Any) -> float:
            return metrics["loss"]

        self._folder = folder
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
        # With its handler from the start, else what a run before this one wrote has no metadata.
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
            if error is None:  # else the first failure is the one to tell
                raise
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest validation loss, the latest where none was measured; None without any."""
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def save(self, step: int, state: Any, loss: float | None) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        # A copy: the next step may reuse the memory of `state` before it is on the disk.
        copy = jax.tree.map(jnp.copy, state)
        self._saving = step
        metrics = None if loss is None else {"loss": loss}
        self._guard(lambda: self._manager.save(step, args=ocp.args.StandardSave(copy), metrics=metrics))

    def wait(self) -> None:
        """Waits until what was begun is written.

        Raises:
            OSError: it could not be.
        """
        self._guard(self._manager.wait_until_finished)
        self._saving = None

    def _guard(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # whatever layer of Orbax or TensorStore met the full disk
            saving, self._saving = self._saving, None
            whole = [step for step in self.steps() if step != saving]
            last = f"the last whole one is of step {whole[-1]}" if whole else "there is no earlier one"
            raise OSError(
                f"{self._folder}: the checkpoint of step {saving} could not be written ({error}); {last}"
            ) from error

    def restore(self, step: int, like: State) -> State:
        """The checkpoint of a step.

        Args:
            step: has a checkpoint.
            like: arrays of the run's state; what is restored goes where they are.

        Raises:
            ValueError: the checkpoint has other arrays; all that differ are listed.
        """
        stored = self._manager.item_metadata(step)
        check_shapes(self._folder / str(step), _shapes(stored), _shapes(like), "this run")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array under its path, however the containers on the path are called."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path): tuple(
            leaf.shape
        )
        for path, leaf in leaves
    }
