"""The trainer: its steps against PyTorch and closed forms, and runs that end before their time."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import dvp_jax
from dvp_jax import DecodeConfig, Model
from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.t5.layers import Dropout
from dvp_jax.train import trainer
from dvp_jax.train.batches import Batch, shift_right
from dvp_jax.train.optimizer import make_optimizer, make_schedule
from dvp_jax.train.trainer import (
    StepMetrics,
    TrainConfig,
    TrainState,
    depth_sums,
    make_train_config,
    train_step,
)
from tests.exits.helpers import nested
from tests.models import both
from tests.train.helpers import (
    CONFIG,
    Watched,
    assert_same,
    counting_step,
    files_under,
    finish,
    flat,
    make_batches,
    start,
    tiny_model,
    train_to_be_killed,
    train_until_the_disk_is_full,
)

pytestmark = pytest.mark.usefixtures("quick_compiler")

NO_DROPOUT = dataclasses.replace(CONFIG, dropout_rate=0.0)


# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: an integer of at least 1"),
        ({"steps": 2.5}, "steps is 2.5; allowed: an integer of at least 1"),
        ({"batch_size": -1}, "batch_size is -1; allowed: an integer of at least 1"),
        ({"accumulation": 0}, "accumulation is 0; allowed: an integer of at least 1"),
        ({"accumulation": True}, "accumulation is True; allowed: an integer of at least 1"),
        ({"log_every": 0}, "log_every is 0; allowed: an integer of at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; allowed: an integer of at least 1"),
        ({"keep": 0}, "keep is 0; allowed: an integer of at least 1"),
        ({"batch_size": 6, "accumulation": 4}, "accumulation is 4; allowed: a divisor of batch_size, 6"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adafactor, adamw"),
        ({"schedule": "step"}, "schedule is 'step'; allowed: constant, linear, cosine, inverse_sqrt"),
        ({"dtype": "float16"}, "dtype is 'float16'; allowed: float32, bfloat16"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; allowed: at least 0, below 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1; allowed: at least 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; allowed: at least 0, below 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; allowed: at least 0"),
        ({"weight_decay": math.nan}, "weight_decay is nan; allowed: at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed: a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; allowed: a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; allowed: a finite number above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; allowed: a finite number above 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1; allowed: an integer of at least 0"),
        ({"warmup_steps": 1.5}, "warmup_steps is 1.5; allowed: an integer of at least 0"),
        ({"seed": -1}, "seed is -1; allowed: an integer of at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; allowed: an integer below 2 ** 32"),
        (
            {"leraning_rate": 1e-3, "seeds": 1},
            "train has no leraning_rate, seeds; allowed: steps, batch_size, accum",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name_value_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError) as error:
        make_train_config({"steps": 10, **fields})
    assert str(error.value).startswith(message)


def test_steps_must_be_given():
    with pytest.raises(ValueError, match=r"^train.steps is not set; allowed: an integer of at least 1$"):
        make_train_config({"batch_size": 4})


def test_a_config_from_lists_can_be_a_static_argument():
    cfg = make_train_config({"steps": 3, "loss": "layers", "loss_layers": [2, 1]})
    assert hash(cfg) == hash(TrainConfig(steps=3, loss="layers", loss_layers=(2, 1)))
    assert cfg.depth_weights(2) == {1: 0.5, 2: 0.5}


# One step


def random_batch(rows: int = 4, seed: int = 0, vocab_size: int = CONFIG.vocab_size) -> Batch:
    """Rows of different lengths, one of them without a target."""
    random = np.random.default_rng(seed)
    ids, targets = (random.integers(2, vocab_size, (rows, length)).astype(np.int32) for length in (7, 6))
    mask = np.arange(7) < np.array([[7], [3], [5], [6]])[:rows]
    target_mask = np.arange(6) < np.array([[6], [1], [0], [4]])[:rows]
    return Batch(*map(jnp.asarray, (ids, mask, targets, target_mask)))


def start_of(model: Model, cfg: TrainConfig) -> TrainState:
    """A state of its own, since a step gives it up."""
    params = jax.tree.map(jnp.copy, model.params)
    return TrainState(jnp.int32(0), params, cfg.make_optimizer().init(params))


def run_steps(config, cfg: TrainConfig, state: TrainState, batches) -> tuple[TrainState, list[StepMetrics]]:
    metrics = []
    for batch in batches:
        state, one = train_step(config, cfg, state, batch)
        metrics.append(one)
    return state, metrics


HF_SHAPE = {"vocab_size": 60, "d_model": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 2}
ADAMW = TrainConfig(
    steps=3,
    batch_size=4,
    loss="final",
    optimizer="adamw",
    learning_rate=3e-3,
    weight_decay=0.1,
    clip_norm=None,
    dropout_rate=0.0,
)


def torch_steps(peer, batches: list[Batch], cfg: TrainConfig) -> tuple[list[float], list[float]]:
    """The steps in PyTorch, on `peer` itself; losses and norms of gradients."""
    parameters = list(peer.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, eps=1e-8)
    losses, norms = [], []
    for batch in batches:
        ids, mask, targets, target_mask = (
            torch.tensor(np.asarray(x)).long()
            for x in (batch.input_ids, batch.mask, batch.targets, batch.target_mask)
        )
        labels = torch.where(target_mask.bool(), targets, -100)
        loss = peer(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if cfg.clip_norm is None else cfg.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_steps_with_adamw_equal_those_of_pytorch(clip_norm):
    cfg = dataclasses.replace(ADAMW, clip_norm=clip_norm)
    peer, model = both("t5", dropout_rate=0.0, **HF_SHAPE)
    peer = copy.deepcopy(peer)
    batches = [random_batch(seed=seed, vocab_size=60) for seed in range(cfg.steps)]
    before = hugging_face_tensors(model.config, model.params)
    state, metrics = run_steps(model.config, cfg, start_of(model, cfg), batches)
    losses, norms = torch_steps(peer, batches, cfg)
    np.testing.assert_allclose([one.loss for one in metrics], losses, rtol=1e-5)
    np.testing.assert_allclose([one.gradient_norm for one in metrics], norms, rtol=1e-4)
    assert clip_norm is None or min(norms) > clip_norm
    ours, theirs = hugging_face_tensors(model.config, state.params), dict(peer.named_parameters())
    for name, found in ours.items():
        # Adam divides a gradient by its own size, so that entries near zero carry float32's error further.
        np.testing.assert_allclose(found, theirs[name].detach().numpy(), atol=2e-5, err_msg=name)
        assert np.abs(found - before[name]).max() > 1e-3, name
    assert int(state.step) == 3


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    cfg = dataclasses.replace(ADAMW, clip_norm=0.5, steps=2)
    _, model = both("t5", dropout_rate=0.0, **HF_SHAPE)
    # Rows of 6, 1, 0 and 4 targets: a mean of the parts' means would be another.
    batches = [random_batch(seed=seed, vocab_size=60) for seed in range(cfg.steps)]
    whole, metrics = run_steps(model.config, cfg, start_of(model, cfg), batches)
    for parts in (2, 4):
        in_parts = dataclasses.replace(cfg, accumulation=parts)
        found, found_metrics = run_steps(model.config, in_parts, start_of(model, in_parts), batches)
        for name in ("loss", "gradient_norm"):
            one, other = ([getattr(m, name) for m in ms] for ms in (found_metrics, metrics))
            np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=name)
        # The sum over rows is taken in another order, and Adam carries that error further near zero.
        for path, expected in flat(whole.params).items():
            np.testing.assert_allclose(flat(found.params)[path], expected, atol=2e-5, err_msg=path)


def test_bfloat16_is_for_products_only():
    cfg = dataclasses.replace(ADAMW, dtype="bfloat16")
    _, model = both("t5", dropout_rate=0.0, **HF_SHAPE)
    batch = random_batch(vocab_size=60)
    _, exact = train_step(model.config, ADAMW, start_of(model, ADAMW), batch)
    state, metrics = train_step(model.config, cfg, start_of(model, cfg), batch)
    assert float(metrics.loss) == pytest.approx(float(exact.loss), rel=0.02)
    assert float(metrics.loss) != pytest.approx(float(exact.loss), rel=1e-6)
    for path, array in flat((state.params, state.optimizer)).items():
        assert array.dtype in (np.float32, np.int32), path


def operands_of_products(jaxpr):
    """The dtypes of the operands of every product, with those of inner jaxprs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {operand.aval.dtype.name for operand in equation.invars}
    for _, inner in nested(jaxpr):
        yield from operands_of_products(inner)


def test_bfloat16_is_for_the_products_of_the_gradient_too():
    _, model = both("t5", dropout_rate=0.0, **HF_SHAPE)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), model.params)
    sums = functools.partial(depth_sums, model.config, batch=random_batch(vocab_size=60), depths=(1, 2))
    loss = jax.make_jaxpr(lambda params: jnp.sum(sums(params).loss))(params)
    gradient = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(sums(params).loss)))(params)
    forward, both_ways = (list(operands_of_products(x.jaxpr)) for x in (loss, gradient))
    assert len(both_ways) >= 3 * len(forward) > 0
    assert all(operands == {"bfloat16"} for operands in both_ways)


# Dropout


def test_dropout_keeps_the_mean_and_shares_its_mask_along_the_length():
    rate = 0.25
    module = Dropout(dataclasses.replace(CONFIG, dropout_rate=rate))
    x = jnp.asarray(np.random.default_rng(0).uniform(1.0, 2.0, (3, 5, 16)), jnp.float32)
    apply = jax.jit(jax.vmap(lambda key: module.apply({}, x, rngs={"dropout": key})))
    out = np.asarray(apply(jax.random.split(jax.random.key(0), 2000)))
    kept = out != 0.0
    np.testing.assert_allclose(out, np.where(kept, np.asarray(x) / (1 - rate), 0.0), rtol=1e-6)
    assert (kept == kept[:, :, :1]).all()  # one mask for all positions
    assert kept[:, :, 0].reshape(2000, -1).std(axis=0).min() > 0.3  # of its own for every row and unit
    assert len({mask.tobytes() for mask in kept[:, :, 0].reshape(-1, 16)}) > 3000
    # Five standard deviations of a mean of 2000 draws.
    bound = 5 * np.asarray(x) * math.sqrt(rate / (1 - rate) / 2000)
    assert (np.abs(out.mean(axis=0) - x) < bound).all()
    assert kept.mean() == pytest.approx(1 - rate, abs=0.005)


RESUMED = TrainConfig(
    steps=8, batch_size=4, optimizer="adamw", schedule="linear", warmup_steps=2, checkpoint_every=3, log_every=2
)


def test_dropout_of_a_step_is_drawn_from_seed_and_step_alone():
    model, batch = tiny_model(), make_batches().at(0)

    def loss(step: int, cfg: TrainConfig = RESUMED) -> float:
        state = dataclasses.replace(start_of(model, cfg), step=jnp.int32(step))
        return float(train_step(CONFIG, cfg, state, batch)[1].loss)

    losses = [loss(step) for step in (0, 1, 2)]
    assert losses == [loss(step) for step in (0, 1, 2)]
    assert len({*losses, loss(0, dataclasses.replace(RESUMED, seed=1))}) == 4


def plain_loss(model: Model, batch: Batch) -> float:
    """Mean cross-entropy of the last depth, by numpy from the model's logits."""
    mask = np.asarray(batch.target_mask)
    return float(cross_entropies(logits_of(model, batch), np.asarray(batch.targets))[mask].mean())


def logits_of(model: Model, batch: Batch) -> np.ndarray:
    """Of the last depth; zero in rows that only fill up the batch."""
    rows = np.asarray(batch.mask).any(axis=1)
    ids, mask, inputs = (
        np.asarray(x)[rows] for x in (batch.input_ids, batch.mask, shift_right(model.config, batch.targets))
    )
    logits = np.zeros((*batch.targets.shape, model.config.vocab_size))
    logits[rows] = dvp_jax.teacher_forced_logits(model, ids, mask, inputs)
    return logits


def cross_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[..., 0]
    return total - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


ONE_STEP = TrainConfig(steps=1, batch_size=4, loss="final", optimizer="adamw", dropout_rate=0.0)


def test_dropout_rate_zero_trains_without_dropout(tmp_path):
    model = tiny_model()  # of rate 0.1
    batches = make_batches(4)
    expected = plain_loss(model, batches.at(0))
    trainer.train(model, batches, None, ONE_STEP, tmp_path)
    assert lines_of(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_decoding_and_teacher_forcing_use_no_dropout():
    without = tiny_model(NO_DROPOUT)
    much = Model(dataclasses.replace(CONFIG, dropout_rate=0.5), without.params)
    batch = random_batch()
    np.testing.assert_array_equal(logits_of(much, batch), logits_of(without, batch))
    out, expected = (
        dvp_jax.generate(model, batch.input_ids, batch.mask, DecodeConfig(method="full", max_new_tokens=4))
        for model in (much, without)
    )
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.confidences, expected.confidences)


# Learning rates and optimisers


def decayed(schedule: str, count: int, warmup: int, steps: int) -> float:
    """The factor on the highest rate at a step counted from 0, in closed form."""
    if count < warmup:
        return (count + 1) / warmup
    part = (count - warmup) / (steps - warmup)
    return {
        "constant": 1.0,
        "linear": 1.0 - part,
        "cosine": (1.0 + math.cos(math.pi * part)) / 2,
        "inverse_sqrt": math.sqrt(warmup / count) if warmup else 1.0 / math.sqrt(1 + count),
    }[schedule]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedules_follow_their_closed_forms(schedule, warmup):
    rate = make_schedule(schedule, 0.3, warmup, 50)
    for count in (0, 1, 4, 9, 10, 11, 25, 49):
        expected = 0.3 * decayed(schedule, count, warmup, 50)
        assert float(rate(jnp.int32(count))) == pytest.approx(expected, rel=1e-5, abs=1e-7), count


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_a_warm_up_as_long_as_the_run_reaches_the_highest_rate(schedule):
    rate = make_schedule(schedule, 0.3, 5, 5)
    np.testing.assert_allclose([rate(jnp.int32(i)) for i in range(5)], [0.06, 0.12, 0.18, 0.24, 0.3], rtol=1e-5)


def test_a_config_gives_its_schedule_to_the_optimiser():
    cfg = TrainConfig(
        steps=10, optimizer="adamw", learning_rate=0.5, schedule="linear", warmup_steps=2, clip_norm=None
    )
    params = {"w": jnp.ones((2, 2))}
    optimizer = cfg.make_optimizer()
    state = optimizer.init(params)
    sizes = []
    for _ in range(5):
        # Adam of a constant gradient is its sign.
        updates, state = optimizer.update({"w": jnp.full((2, 2), 3.0)}, state, params)
        sizes.append(-float(updates["w"][0, 0]))
    np.testing.assert_allclose(sizes, [0.25, 0.5, 0.5, 0.5 * 7 / 8, 0.5 * 6 / 8], rtol=1e-4)


def test_the_first_step_of_adafactor_is_the_learning_rate_times_the_size_of_the_parameter():
    random = np.random.default_rng(0)
    w = random.normal(size=(4, 6)).astype(np.float32)
    params = {"one": jnp.asarray(w), "double": jnp.asarray(2 * w)}
    gradient = {"one": jnp.asarray(random.normal(size=w.shape), jnp.float32)}
    gradient["double"] = gradient["one"]
    optimizer = make_optimizer("adafactor", optax.constant_schedule(0.01), weight_decay=0.0, clip_norm=None)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # Adafactor, algorithm 4: alpha = max(eps, rms(x)) * rate; its first second moment is the gradient's square.
    expected = -0.01 * np.sqrt(np.mean(w**2)) * np.sign(gradient["one"])
    np.testing.assert_allclose(updates["one"], expected, rtol=1e-4)
    np.testing.assert_allclose(updates["double"], 2 * expected, rtol=1e-4)


def test_adafactor_lowers_the_loss():
    cfg = TrainConfig(steps=12, batch_size=4, optimizer="adafactor", learning_rate=0.05)
    _, metrics = run_steps(NO_DROPOUT, cfg, start_of(tiny_model(NO_DROPOUT), cfg), [random_batch()] * cfg.steps)
    losses = [float(one.loss) for one in metrics]
    assert losses[-1] < 0.7 * losses[0]


# Validation


def test_validation_is_a_mean_over_the_tokens_of_all_batches_at_each_depth():
    model = tiny_model(seed=3)  # of rate 0.1: there must be no dropout
    batches = make_batches(6, 4, target_lengths=(1, 8))
    found = trainer.validate(CONFIG, model.params, batches.once())
    tokens = [int(batch.target_mask.sum()) for batch in batches.once()]
    assert len(tokens) == 2 and tokens[0] != tokens[1]
    for depth in (1, 2):
        decoder = {n: v for n, v in model.params["decoder"].items() if n == "final_norm" or int(n[7:]) < depth}
        cut = Model(dataclasses.replace(CONFIG, num_decoder_layers=depth), {**model.params, "decoder": decoder})
        losses, correct = [], []
        for batch in batches.once():
            logits, targets, mask = logits_of(cut, batch), np.asarray(batch.targets), np.asarray(batch.target_mask)
            losses.append(cross_entropies(logits, targets)[mask])
            correct.append((logits.argmax(axis=-1) == targets)[mask])
        assert found["loss"][depth - 1] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
        assert found["accuracy"][depth - 1] == pytest.approx(np.concatenate(correct).mean(), abs=1e-7)
        assert np.concatenate(losses).mean() != pytest.approx(np.mean([np.mean(x) for x in losses]), rel=1e-4)


# Runs, with a step that needs no compiler: each adds 1 to all parameters


def lines_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_steps(workdir) -> list[int]:
    """The whole checkpoints: others have a longer name."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture
def counting(monkeypatch):
    """Replaces the training step."""
    monkeypatch.setattr(trainer, "train_step", counting_step)


@pytest.fixture
def validating(monkeypatch):
    """Replaces validation: gives out the losses by depth of one checkpoint after the other."""

    def chosen(*losses):
        remaining = iter(losses)
        monkeypatch.setattr(
            trainer, "validate", lambda *a, **k: {"loss": next(remaining), "accuracy": [0.25, 0.5]}
        )

    return chosen


def quick_config(**fields) -> TrainConfig:
    return TrainConfig(**{"steps": 8, "batch_size": 4, "optimizer": "adamw", "checkpoint_every": 2, **fields})


def assert_taken(model: Model, steps: int) -> None:
    """Expects the parameters after that many counting steps from tiny_model()."""
    expected = flat(tiny_model().params)
    for path, array in flat(model.params).items():
        np.testing.assert_allclose(array, expected[path] + steps, rtol=1e-5, err_msg=path)


def test_the_log_has_the_mean_training_loss_and_each_validation_at_their_steps(tmp_path, counting, validating):
    validating([5.0, 4.0], [3.0, 2.0], [1.0, 0.5])
    cfg = quick_config(steps=10, log_every=3, checkpoint_every=4)
    trainer.train(tiny_model(), make_batches(), make_batches(), cfg, tmp_path)

    def validation(step, *loss):
        return {"step": step, "split": "validation", "loss": list(loss), "accuracy": [0.25, 0.5]}

    def training(step, loss):
        return {"step": step, "split": "train", "loss": loss}

    assert lines_of(tmp_path) == [
        training(3, 20.0),  # the mean of 10, 20 and 30
        training(4, 40.0),
        validation(4, 5.0, 4.0),
        training(6, 55.0),
        training(8, 75.0),
        validation(8, 3.0, 2.0),
        training(9, 90.0),
        training(10, 100.0),
        validation(10, 1.0, 0.5),
    ]


# By the weights 1/3 and 2/3 of "weighted" step 4 is the best, by the last depth alone step 2.
LOSSES = ([4.0, 1.0], [1.0, 1.2], [3.0, 3.0], [2.0, 2.5])


@pytest.mark.parametrize(("loss", "best"), [("weighted", 4), ("final", 2)])
def test_the_best_model_by_the_weighted_validation_loss_is_returned(tmp_path, counting, validating, loss, best):
    validating(*LOSSES)
    cfg = quick_config(loss=loss)
    assert_taken(trainer.train(tiny_model(), make_batches(), make_batches(), cfg, tmp_path), best)
    # A run that is over gives the same model again, and changes nothing.
    before = files_under(tmp_path)
    again = trainer.train(tiny_model(), make_batches(), make_batches(), cfg, tmp_path, resume=True)
    assert_taken(again, best)
    assert files_under(tmp_path).keys() == before.keys()
    assert lines_of(tmp_path) == [json.loads(line) for line in before["metrics.jsonl"].splitlines()]


def test_without_validation_the_last_model_is_returned(tmp_path, counting):
    assert_taken(trainer.train(tiny_model(), make_batches(), None, quick_config(steps=7), tmp_path), 7)
    assert {line["split"] for line in lines_of(tmp_path)} == {"train"}


@pytest.mark.parametrize(("keep", "kept"), [(1, [4, 8]), (2, [4, 6, 8]), (3, [4, 6, 8])])
def test_the_latest_checkpoints_and_the_best_are_kept(tmp_path, counting, validating, keep, kept):
    validating(*LOSSES)
    trainer.train(tiny_model(), make_batches(), make_batches(), quick_config(keep=keep), tmp_path)
    assert saved_steps(tmp_path) == kept


def test_a_used_workdir_is_refused_without_resume(tmp_path, counting):
    trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    before = files_under(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a run up to step 4; allowed: another workdir, or .*resume"):
        trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    assert files_under(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "cfg_fields", "said"),
    [
        ({"d_ff": 48}, {}, ["wrong shape: ", "/layers_0/feed_forward/wi (32, 16), this run says (48, 16) and "]),
        # Ten matrices and three norms, and two averages of each.
        ({"num_decoder_layers": 3}, {}, ["missing: params/decoder/layers_2/", " and 38 more"]),
        ({"num_decoder_layers": 1}, {}, ["not of this model: ", "/decoder/layers_1/", " and 38 more"]),
        ({}, {"optimizer": "adafactor"}, ["missing: optimizer/", "not of this model: optimizer/"]),
    ],
)
def test_checkpoints_of_other_arrays_are_refused_and_left_alone(tmp_path, counting, fields, cfg_fields, said):
    trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    before = files_under(tmp_path)
    other = tiny_model(dataclasses.replace(CONFIG, **fields))
    with pytest.raises(ValueError) as error:
        trainer.train(other, make_batches(), None, quick_config(**cfg_fields), tmp_path, resume=True)
    assert str(tmp_path / "checkpoints" / "4") in str(error.value)
    for part in said:
        assert part in str(error.value)
    assert files_under(tmp_path) == before


def test_a_run_is_not_resumed_with_fewer_steps_than_it_has_taken(tmp_path, counting):
    trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    before = files_under(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^steps is 3; allowed: at least 4, which the run in {tmp_path} has taken$"
    ):
        trainer.train(tiny_model(), make_batches(), None, quick_config(steps=3), tmp_path, resume=True)
    assert files_under(tmp_path) == before


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path, counting):
    trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    (tmp_path / "checkpoints" / "4").rename(tmp_path / "checkpoints" / "6")
    with pytest.raises(ValueError, match=r"checkpoints/6 is of step 4; allowed: a folder of this name$"):
        trainer.train(tiny_model(), make_batches(), None, quick_config(), tmp_path, resume=True)


# Losses that are not finite


def replace_arrays(folder) -> None:
    """Gives a checkpoint the arrays of the one before it: as whole as before, and not what was saved."""
    shutil.rmtree(folder / "default")
    shutil.copytree(folder.with_name("2") / "default", folder / "default")


def edit_loss(folder) -> None:
    (folder / "metrics" / "metrics").write_text('{"loss": 0.5}')


def empty_largest(folder) -> None:
    max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0).write_bytes(b"")


DAMAGES = [replace_arrays, edit_loss, empty_largest] + [
    functools.partial(lambda name, folder: (folder / name).write_bytes((folder / name).read_bytes()[:9]), name)
    for name in ("metrics/metrics", "_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt")
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: getattr(damage, "__name__", None) or damage.args[0])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, counting, validating, damage):
    validating([3.0, 3.0], [2.0, 2.0])
    trainer.train(tiny_model(), make_batches(), make_batches(), quick_config(steps=4), tmp_path)
    damage(tmp_path / "checkpoints" / "4")
    validating([2.0, 2.0], [1.0, 1.0])
    steps = []
    batches = Watched(make_batches(), steps.append)
    with pytest.warns(UserWarning, match=rf"{tmp_path}/checkpoints/4 is damaged: .*the run goes on from step 2"):
        model = trainer.train(tiny_model(), batches, make_batches(), quick_config(steps=6), tmp_path, resume=True)
    assert steps == [3, 4, 5, 6]
    assert_taken(model, 6)
    assert saved_steps(tmp_path) == [4, 6]


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_was(tmp_path, counting):
    trainer.train(tiny_model(), make_batches(), None, quick_config(steps=4), tmp_path)
    for step in ("2", "4"):
        empty_largest(tmp_path / "checkpoints" / step)
    before = files_under(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoints/4 is damaged.*checkpoints/2 is damaged.*another workdir$"):
        trainer.train(tiny_model(), make_batches(), None, quick_config(), tmp_path, resume=True)
    assert files_under(tmp_path) == before


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        '{"step": 4',
        '{"step": "4", "split": "train", "loss": 1.0}',
        '{"step": 4, "split": "validation", "loss": [1.0]}',
    ],
)
def test_a_damaged_line_of_the_log_is_named_and_the_others_kept(tmp_path, line):
    good = [json.dumps({"step": step, "split": "train", "loss": 1.5}) for step in (2, 4, 6)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([good[0], line, good[2], '{"step": 8, "spl']))
    with pytest.warns(UserWarning, match=rf"^{path}, line 2: damaged and left out$") as warned:
        assert [each["step"] for each in trainer.read_metrics(path)] == [2, 6]
    assert len(warned) == 1, "the last line is one that a killed run has torn"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path, counting, monkeypatch):
    step_of = trainer.train_step
    bad = {"step": 5}

    def poisoned(config, cfg, state, batch):
        state, metrics = step_of(config, cfg, state, batch)
        if int(state.step) == bad["step"]:
            metrics = StepMetrics(jnp.float32(math.nan), metrics.gradient_norm)
        return state, metrics

    monkeypatch.setattr(trainer, "train_step", poisoned)
    cfg = quick_config(checkpoint_every=3)
    with pytest.raises(ValueError, match=r"^step 5: the loss is nan"):
        trainer.train(tiny_model(), make_batches(), None, cfg, tmp_path)
    assert saved_steps(tmp_path) == [3]
    assert [line["step"] for line in lines_of(tmp_path)] == [3]
    bad["step"] = None
    assert_taken(trainer.train(tiny_model(), make_batches(), None, cfg, tmp_path, resume=True), 8)
    assert [line["step"] for line in lines_of(tmp_path)] == [3, 6, 8]


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path, counting, monkeypatch):
    monkeypatch.setattr(
        trainer, "train_step", lambda c, t, s, b: (s, StepMetrics(jnp.float32(1.0), jnp.float32(math.inf)))
    )
    with pytest.raises(ValueError, match=r"^step 1: the loss is 1.0 and its gradient's norm inf"):
        trainer.train(tiny_model(), make_batches(), None, quick_config(), tmp_path)
    assert saved_steps(tmp_path) == []


def test_infinite_parameters_end_the_run_at_their_step(tmp_path):
    model = tiny_model()
    params = {**model.params, "shared": model.params["shared"].at[5:].set(jnp.inf)}
    with pytest.raises(ValueError, match=r"^step 1: the loss is nan"):
        trainer.train(Model(CONFIG, params), make_batches(4), None, ONE_STEP, tmp_path)
    assert saved_steps(tmp_path) == []


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path, counting, validating):
    validating([2.0, 1.0], [math.nan, math.nan], [math.nan, math.nan], [math.nan, math.nan])
    with pytest.raises(ValueError, match="step 4"):
        trainer.train(tiny_model(), make_batches(), make_batches(), quick_config(), tmp_path)
    assert saved_steps(tmp_path) == [2]


# A disk that is full


@pytest.mark.parametrize(("fails", "whole"), [(2, []), (6, [2, 4])])
def test_a_full_disk_is_told_with_the_step_and_leaves_the_checkpoints_before(tmp_path, counting, fails, whole):
    cfg = quick_config(keep=5)
    after = whole[-1] if whole else None
    process = start(train_until_the_disk_is_full, tmp_path / "log", tmp_path, cfg, fails, after)
    assert finish(process, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    error = (tmp_path / "error").read_text()
    assert error.startswith(f"{tmp_path}/checkpoints: the checkpoint of step {fails} could not be written (")
    assert "File too large" in error
    last = f"the last whole one is of step {after}" if whole else "there is no earlier one"
    assert error.endswith(last)
    assert saved_steps(tmp_path) == whole

    taken = []
    batches = Watched(make_batches(), taken.append)
    assert_taken(trainer.train(tiny_model(), batches, None, cfg, tmp_path, resume=True), 8)
    assert taken == list(range(fails - 1, 9))  # from the one after the last whole checkpoint
    # Nothing of the failed one is left.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4", "6", "8"}


# Runs that are interrupted


class Interruption(Exception):  # noqa: N818 - not an error of the run
    pass


def test_an_interrupted_run_that_is_resumed_ends_as_one_that_was_not(tmp_path):
    def run(name: str, stop: int | None, resume: bool) -> Model:
        def before(step):
            taken.append(step)
            if step == stop:
                raise Interruption

        data = make_batches()
        return trainer.train(tiny_model(), Watched(data, before), data, RESUMED, tmp_path / name, resume=resume)

    taken = []
    expected = run("whole", None, False)
    assert taken == list(range(1, 9))
    taken = []
    for stop, resume in ((2, False), (6, True)):
        with pytest.raises(Interruption):
            run("interrupted", stop, resume)
    found = run("interrupted", None, True)
    assert taken == [1, 2, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    assert_same(found.params, expected.params)
    whole, interrupted = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "interrupted"))
    assert whole == interrupted
    steps = [(line["step"], line["split"]) for line in lines_of(tmp_path / "whole")]
    assert [step for step, split in steps if split == "train"] == [2, 3, 4, 6, 8]
    assert [step for step, split in steps if split == "validation"] == [3, 6, 8]


def resume_after_kills(folder, kills: int, seed: int) -> int:
    """Kills a training at random moments and lets it go on, to the end; how many kills hit a save.

    Expects what a training that was never killed ends with.
    """
    cfg = TrainConfig(
        steps=5 * kills + 8, batch_size=4, optimizer="adamw", checkpoint_every=1, log_every=1, schedule="cosine"
    )
    log = folder / "log"

    def begin(name: str):
        receive, send = multiprocessing.Pipe(duplex=False)
        process = start(train_to_be_killed, log, folder / name, folder / "cache", cfg, send)
        send.close()
        return process, receive

    def params_of(name: str) -> dict[str, np.ndarray]:
        process, receive = begin(name)
        assert finish(process, log) == 0, log.read_text()
        receive.close()
        return dict(np.load(folder / name / "params.npz"))

    expected = params_of("whole")
    random = np.random.default_rng(seed)
    hits = 0
    for kill in range(kills):
        process, steps = begin("killed")
        first = steps.recv()
        while steps.recv() < first + random.integers(1, 4):
            pass
        time.sleep(random.uniform(0.0, 0.15))
        process.kill()
        assert finish(process, log) == -signal.SIGKILL, (kill, log.read_text())
        steps.close()
        hits += any(not path.name.isdigit() for path in (folder / "killed" / "checkpoints").iterdir())
    assert_same(params_of("killed"), expected)
    assert (folder / "killed" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    return hits


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_one_that_was_not(tmp_path):
    resume_after_kills(tmp_path, 3, seed=0)


@pytest.mark.slow
def test_a_run_that_is_killed_within_saves_ends_as_one_that_was_not(tmp_path):
    assert resume_after_kills(tmp_path, 12, seed=1) > 0
