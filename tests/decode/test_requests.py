"""Settings that each request of an engine has for itself, and texts that come token by token."""

import dataclasses
import itertools

import numpy as np
import pytest

import dvp_jax
from dvp_jax.decode import lanes
from dvp_jax.decode.text import GeneratedText, Piece
from tests.decode.helpers import COMMON, DVP, LOSSLESS, MODEL, lettered, run
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")

ROWS = [[183, 97, 78], [4, 3], [69], [135, 116, 19], [77, 78, 79]]
DRAWN = dataclasses.replace(DVP, temperature=0.8, top_k=20, top_p=0.9)


def engine(cfg, slots=2):
    return dvp_jax.Engine(dataclasses.replace(both(*MODEL)[1], common_tokens=COMMON), cfg, slots=slots)


def outputs(of, requests):
    """The outputs of requests with their settings, by their place."""
    ids = [of.submit(ids, **settings) for ids, settings in requests]
    results = {result.request_id: result for result in of.run([])}
    return [results[i].output for i in ids]


def alone(ids, cfg):
    out = run([ids], cfg)
    return out.tokens[0, : out.lengths[0]].tolist(), out.exit_layers[0, : out.lengths[0]].tolist()


CHANGES = {
    "thresholds": (DVP, [{"threshold": value} for value in (0.0, 0.2, 0.5, 1.0)]),
    "lengths": (LOSSLESS, [{"max_new_tokens": value} for value in (1, 2, 5, 8)]),
    "samples": (DRAWN, [{"temperature": 0.3, "seed": 5}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rows_with_different_settings_stand_side_by_side_each_as_if_alone(name):
    cfg, changes = CHANGES[name]
    of = engine(cfg, slots=3)
    requests = list(zip(ROWS, [*changes, {}], strict=True))
    for request, output in zip(requests, outputs(of, requests), strict=True):
        ids, own = request
        seed = {"seed": cfg.seed + ROWS.index(ids)} if cfg.samples else {}
        expected = alone(ids, dataclasses.replace(cfg, **{**seed, **own}))
        assert (output.tokens, output.exit_layers) == expected
    outputs(of, [(ROWS[0], {})])  # one alone is encoded in another shape
    programs = [f._cache_size() for f in (lanes._advance, lanes._refill)]
    outputs(of, [(ROWS[0], {**changes[0], "threshold": 0.77})])
    assert [f._cache_size() for f in (lanes._advance, lanes._refill)] == programs


@pytest.mark.parametrize(
    ("cfg", "settings", "message"),
    [
        (DVP, {"threshold": 1.5}, "threshold is 1.5; allowed: a number from 0 to 1"),
        (DVP, {"max_new_tokens": 9}, "max_new_tokens is 9; allowed: 1 to 8, as the engine's"),
        (DVP, {"prune_size": 3}, "a request has no prune_size; allowed: threshold, max_new_tokens"),
        (DVP, {"temperature": 0.5}, "temperature is 0.5; allowed: 0.0, as the engine's config"),
        (dataclasses.replace(DVP, temperature=1.0), {"top_k": 5}, "top_k is 5; allowed: None, as the engine's"),
        (DRAWN, {"temperature": -1.0}, "temperature is -1.0; allowed: a number of at least 0"),
    ],
)
def test_a_setting_that_no_request_may_have_is_its_error_and_others_go_on(cfg, settings, message):
    of = engine(cfg)
    bad, good = of.submit([4, 3], **settings), of.submit([4, 3])
    results = {result.request_id: result for result in of.run([])}
    assert message in str(results[bad].error) and results[bad].output is None
    assert results[good].output is not None


@pytest.mark.parametrize("cfg", [DVP, LOSSLESS], ids=lambda cfg: cfg.method)
def test_a_stream_gives_each_token_once_and_never_takes_one_back(cfg):
    cfg = dataclasses.replace(cfg, threshold=0.1)
    of = engine(cfg)
    of.submit(ROWS[1])
    pieces = list(of.stream(ROWS[0]))
    joined = [
        list(itertools.chain(*parts)) for parts in zip(*((p.tokens, p.exit_layers) for p in pieces), strict=True)
    ]
    assert tuple(joined) == alone(ROWS[0], cfg)
    assert len(pieces) > 2
    (other,) = of.run([])
    assert other.output.tokens == alone(ROWS[1], cfg)[0]


def test_the_pieces_of_a_stream_make_the_text():
    of = dvp_jax.Engine(lettered(), DVP, slots=1)
    (whole,) = of.texts([ROWS[0]])
    assert "".join(piece.text for piece in of.stream(ROWS[0])) == whole.text != ""


def snapshot(text, num_tokens):
    return GeneratedText(text, [5] * num_tokens, [2] * num_tokens, [0.5] * num_tokens, [], 2)


@pytest.mark.parametrize(
    "snapshots",
    [
        ["a", "a\ufffd", "a\U0001f600", "a\ufffd\ufffd", "a\U0001f600\U0001f600", "a\U0001f600\U0001f600."],
        ["a", "a\ufffd", "a\ufffd"],  # the text does end in U+FFFD
    ],
)
def test_no_piece_repeats_a_character_whose_bytes_were_not_whole(snapshots):
    shown = ""
    for num_tokens, text in enumerate(snapshots):
        is_whole = num_tokens == len(snapshots) - 1
        shown += Piece.after(shown, num_tokens, snapshot(text, num_tokens + 1), is_whole).text
    assert shown == snapshots[-1]


def test_streams_of_two_buckets_take_turns_and_hold_no_other_result_back():
    of = engine(dataclasses.replace(DVP, threshold=1.0))
    long = [[first] * 40 for first in (3, 5)]
    one, other = of.stream(ROWS[0]), of.stream(long[0])
    assert [[len(next(stream).tokens) for stream in (one, other)] for _ in range(3)] == [[1, 1]] * 3
    (result,) = of.run([long[1]], in_order=True)
    assert result.output is not None
    assert sum(len(piece.tokens) for piece in one) == 8 - 3


def test_run_takes_every_request_also_where_another_call_takes_the_results(monkeypatch):
    of, step = engine(DVP), dvp_jax.Engine._step

    def step_and_take(self):
        while self._busy_lanes():
            step(self)
            self._results.clear()  # as `step` in another thread does

    monkeypatch.setattr(dvp_jax.Engine, "_step", step_and_take)
    requests = [[first] for first in range(3, 23)]
    assert list(of.run(requests)) == [] and of.submit([3]) == len(requests)


def test_seeds_of_any_size_are_taken():
    large = run(ROWS[:1], dataclasses.replace(DRAWN, seed=2**70 + 5))
    np.testing.assert_array_equal(large.tokens, run(ROWS[:1], dataclasses.replace(DRAWN, seed=5)).tokens)


def test_a_stream_that_is_left_frees_its_slot():
    of = engine(DVP, slots=1)
    for _ in of.stream(ROWS[0]):
        break
    assert [result.output.tokens for result in of.run([ROWS[1]])] == [alone(ROWS[1], DVP)[0]]


def test_a_bad_request_of_a_stream_is_raised():
    with pytest.raises(ValueError, match="request is"):
        list(engine(DVP).stream([]))
    with pytest.raises(ValueError, match="threshold is 2"):
        list(engine(DVP).stream(ROWS[0], threshold=2))


def test_what_a_request_draws_by_default_depends_on_its_id_alone():
    first, second = (outputs(engine(DRAWN, slots), [(row, {}) for row in ROWS]) for slots in (1, 4))
    assert [output.tokens for output in first] == [output.tokens for output in second]
    expected = [alone(row, dataclasses.replace(DRAWN, seed=i))[0] for i, row in enumerate(ROWS)]
    assert [output.tokens for output in first] == expected
    assert not np.array_equal(expected[0], alone(ROWS[0], dataclasses.replace(DRAWN, seed=77))[0])
