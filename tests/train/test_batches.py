"""Batches: who is in them, how they are padded, and that a step alone says which one it is."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvp_jax import Model
from dvp_jax.train.batches import Batch, Batches, batches_of, shift_right
from tests.train.helpers import CONFIG, ListTask, random_rows, word_tokenizer

PAD = 7  # also an id inside of rows, so that a mask cannot be guessed from the ids


def rows_of(batch: Batch, pad: int = PAD) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The examples in a batch by its masks; expects padding behind each, and rows that fill up to be empty."""
    ids, mask, targets, target_mask = (
        np.asarray(x) for x in (batch.input_ids, batch.mask, batch.targets, batch.target_mask)
    )
    assert mask.dtype == target_mask.dtype == bool and ids.dtype == targets.dtype == np.int32
    rows = []
    for row in range(len(ids)):
        found = []
        for values, where in ((ids[row], mask[row]), (targets[row], target_mask[row])):
            length = int(where.sum())
            assert where.tolist() == [True] * length + [False] * (len(where) - length)
            assert (values[length:] == pad).all()
            found.append(tuple(values[:length].tolist()))
        assert bool(found[0]) == bool(found[1])
        rows.append(tuple(found))
    return [row for row in rows if row[0]]


def make(sources, targets, batch_size=4, seed=0):
    return Batches(sources, targets, pad_token_id=PAD, batch_size=batch_size, seed=seed)


def numbered(count: int, length: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    """Examples that hold their number."""
    return [[index] * length for index in range(count)], [[index, 1] for index in range(count)]


def order(batches: Batches, epoch: int = 0, pad: int = PAD) -> list[int]:
    """The numbers of an epoch's examples."""
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    return [source[0] for step in steps for source, _ in rows_of(batches.at(step), pad)]


LENGTHS = st.sampled_from([1, 5, 31, 32, 33, 64, 65, 90])
TARGET_LENGTHS = st.sampled_from([1, 7, 8, 9, 16, 17])


@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(LENGTHS, TARGET_LENGTHS), min_size=1, max_size=24),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_epoch_visits_each_example_exactly_once(lengths, batch_size, seed, epoch):
    random = np.random.default_rng(seed)
    sources, targets = (
        [random.integers(0, 12, n).tolist() for n in column] for column in zip(*lengths, strict=True)
    )
    batches = make(sources, targets, batch_size, seed)
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    for run in (map(batches.at, steps), batches.once()):
        seen = Counter()
        count = 0
        for batch in run:
            rows = rows_of(batch)
            assert batch.input_ids.shape[0] == batch_size and 1 <= len(rows) <= batch_size
            # One pair of buckets: none of the rows would fit the next smaller ones.
            for length, smaller in zip(
                (batch.input_ids.shape[1], batch.targets.shape[1]),
                ({32: 0, 64: 32, 96: 64}, {8: 0, 16: 8, 24: 16}),
                strict=True,
            ):
                column = 0 if 32 in smaller else 1
                assert all(smaller[length] < len(row[column]) <= length for row in rows)
            seen.update(rows)
            count += 1
        assert seen == Counter(zip(map(tuple, sources), map(tuple, targets), strict=True))
        assert count == len(batches)


@pytest.mark.parametrize(
    ("source", "target", "shape"),
    [
        (1, 1, (32, 8)),
        (32, 8, (32, 8)),
        (33, 9, (64, 16)),
        (97, 25, (128, 32)),
        (129, 33, (256, 64)),
        (257, 65, (384, 128)),
        (512, 128, (512, 128)),
        (513, 129, (1024, 256)),
        (1025, 257, (1536, 384)),
    ],
)
def test_lengths_are_padded_to_the_next_bucket_and_beyond_the_last_to_its_multiples(source, target, shape):
    (batch,) = make([[3] * source], [[4] * target], batch_size=1).once()
    assert (batch.input_ids.shape[1], batch.targets.shape[1]) == shape
    assert rows_of(batch) == [((3,) * source, (4,) * target)]


def test_rows_that_only_fill_up_a_batch_are_masked_throughout():
    (batch,) = make([[3, 4]], [[5, 1]], batch_size=3).once()
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [2, 0, 0])
    np.testing.assert_array_equal(batch.target_mask.sum(axis=1), [2, 0, 0])
    np.testing.assert_array_equal(batch.input_ids[1:], np.full((2, 32), PAD))
    np.testing.assert_array_equal(batch.targets[1:], np.full((2, 8), PAD))


def test_a_step_and_a_seed_alone_say_which_batch_it_is():
    lengths = np.random.default_rng(0).integers(1, 60, 23)
    sources, targets = random_rows(lengths), random_rows(lengths // 5 + 1, seed=1)
    forward = [rows_of(batch) for batch in map(make(sources, targets, seed=3).at, range(30))]
    other = make(sources, targets, seed=3)
    another_run = make(sources, targets, seed=4)
    # In another order, over epochs, with other batches drawn in between.
    for step in (29, 0, 17, 3, 29, 4):
        another_run.at(step)
        assert rows_of(other.at(step)) == forward[step]


def test_epochs_and_seeds_have_orders_of_their_own():
    data = numbered(40)
    orders = [order(make(*data, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(one) == list(range(40)) for one in orders)
    assert len({tuple(one) for one in [*orders, list(range(40))]}) == 7
    # Not the same batches in another order: other companions.
    companions = [{frozenset(one[start : start + 4]) for start in range(0, 40, 4)} for one in orders]
    assert all(len(a & b) < 5 for i, a in enumerate(companions) for b in companions[:i])


def test_batches_of_different_lengths_are_mixed_within_an_epoch():
    sources = [[3] * 10] * 40 + [[3] * 50] * 40
    batches = make(sources, [[4]] * 80)
    widths = [batches.at(step).input_ids.shape[1] for step in range(len(batches))]
    assert sorted(widths) == [32] * 10 + [64] * 10
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_once_is_in_the_order_of_the_data():
    sources, targets = numbered(11)
    rows = [row for batch in make(sources, targets).once() for row in rows_of(batch)]
    assert rows == [(tuple(source), tuple(target)) for source, target in zip(sources, targets, strict=True)]


def test_the_decoder_reads_the_start_token_and_each_target_but_the_last():
    config = dataclasses.replace(CONFIG, decoder_start_token_id=9)
    (batch,) = make([[3]], [[4, 5, 6, 1]], batch_size=1).once()
    assert shift_right(config, batch.targets).tolist() == [[9, 4, 5, 6, 1, PAD, PAD, PAD]]


# batches_of


def model_with_tokenizer() -> Model:
    return Model(CONFIG, {}, word_tokenizer())


def words(*ids: int) -> str:
    return " ".join(f"w{index}" for index in ids)


def test_prompts_and_first_references_of_all_tasks_become_batches():
    first = ListTask([(words(3, 4), (words(5), words(6))), (words(7, 8), (words(9),))])
    second = ListTask([(words(10), (words(11),))], name="other")
    batches = batches_of(model_with_tokenizer(), [first, second], batch_size=3)
    (batch,) = batches.once()
    assert batch.input_ids[:, :4].tolist() == [[3, 4, 1, 0], [7, 8, 1, 0], [10, 1, 0, 0]]
    assert batch.targets[:, :3].tolist() == [[5, 1, 0], [9, 1, 0], [11, 1, 0]]
    assert batch.mask.sum(axis=1).tolist() == [3, 3, 2] and batch.target_mask.sum(axis=1).tolist() == [2, 2, 2]


def test_the_limit_is_of_each_task_from_the_first():
    tasks = [ListTask([(words(i), (words(i),)) for i in range(start, start + 5)]) for start in (10, 20)]
    (batch,) = batches_of(model_with_tokenizer(), tasks, batch_size=4, limit=2).once()
    assert batch.input_ids[:, 0].tolist() == [10, 11, 20, 21]


def test_the_seed_of_batches_of_orders_the_examples():
    tasks = [ListTask([(words(i), (words(i),)) for i in range(3, 33)])]
    orders = [
        order(batches_of(model_with_tokenizer(), tasks, batch_size=5, seed=seed), pad=0) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_prompts_and_labels_that_are_too_long_are_counted_and_truncated_before_the_end_token():
    task = ListTask(
        [
            (words(*range(3, 12)), (words(20, 21, 22),)),  # 10 and 4 tokens, the end token counted
            (words(3), (words(20, 21),)),  # 2 and 3
            (words(4, 5, 6, 7), (words(20, 21, 22, 23, 24),)),  # 5 and 6
        ],
        max_source_length=5,
        max_new_tokens=3,
    )
    with pytest.warns(UserWarning) as warnings:
        batches = batches_of(model_with_tokenizer(), [task], batch_size=3)
    assert [str(warning.message) for warning in warnings] == [
        "1 of 3 prompts of made_up are longer than 5 tokens and were truncated",
        "2 of 3 labels of made_up are longer than 3 tokens and were truncated",
    ]
    (batch,) = batches.once()
    assert batch.input_ids[:, :6].tolist() == [[3, 4, 5, 6, 1, 0], [3, 1, 0, 0, 0, 0], [4, 5, 6, 7, 1, 0]]
    assert batch.targets[:, :4].tolist() == [[20, 21, 1, 0]] * 3


@pytest.mark.parametrize(
    ("tasks", "tokenizer", "fields", "message"),
    [
        ([], True, {}, "^tasks is empty; allowed: at least one$"),
        ([ListTask([])], True, {}, "^task made_up holds no examples; allowed: at least one$"),
        ([ListTask([("w3", ("w4",))])], True, {"limit": 0}, "^limit is 0; allowed: at least 1$"),
        ([ListTask([("w3", ("w4",))])], False, {}, "^model.tokenizer is None; allowed: a checkpoint folder that "),
    ],
)
def test_data_that_give_no_batches_are_refused(tasks, tokenizer, fields, message):
    model = model_with_tokenizer() if tokenizer else Model(CONFIG, {})
    with pytest.raises(ValueError, match=message):
        batches_of(model, tasks, batch_size=2, **fields)
