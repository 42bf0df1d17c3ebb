"""The engine: the text of each request is that of the request alone, whatever runs beside it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.decode import lanes
from dvp_jax.decode.engine import Engine
from tests.decode.helpers import CALM, DECAY, DVP, FULL, LOSSLESS, MODEL, ORACLE, SHALLOW, STATE, lettered, run
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")

MODEL_OF = both(*MODEL)[1]
LONG = [3 + i % 200 for i in range(40)]  # another source bucket than the others
prompts = st.lists(st.lists(st.integers(2, 210), min_size=1, max_size=20) | st.just(LONG), min_size=1, max_size=9)


def assert_alone(output, request, cfg):
    alone = run([request], cfg)
    length = int(alone.lengths[0])
    assert output.tokens == alone.tokens[0, :length].tolist()
    assert output.exit_layers == alone.exit_layers[0, :length].tolist()
    np.testing.assert_allclose(output.confidences, alone.confidences[0, :length], atol=1e-3)
    if alone.drafts is not None:
        assert output.corrected == np.flatnonzero(alone.drafts.corrected[0]).tolist()
        assert output.layers_run == alone.drafts.layers_run[0]


@settings(max_examples=8)
@given(
    requests=prompts,
    cfg=st.sampled_from([DVP, SHALLOW, LOSSLESS, CALM, STATE, DECAY, ORACLE, FULL]),
    steps=st.sampled_from([1, 3, 32]),
    arrivals=st.lists(st.integers(0, 3), min_size=9, max_size=9),
)
def test_each_request_equals_the_request_alone(requests, cfg, steps, arrivals):
    engine, results = Engine(MODEL_OF, cfg, slots=2, steps=steps), {}
    for request, rounds in zip(requests, arrivals, strict=False):  # some come while others run
        engine.submit(request)
        for _ in range(rounds):
            results |= {result.request_id: result for result in engine.step()}
    results |= {result.request_id: result for result in engine.run([])}
    assert sorted(results) == list(range(len(requests)))
    for request_id, request in enumerate(requests):
        assert_alone(results[request_id].output, request, cfg)


def test_a_decaying_threshold_follows_the_position_in_each_row():
    cfg = dataclasses.replace(CALM, decay_temperature=8.0, threshold=0.6)
    requests = [[first, 5] for first in range(2, 12)]
    for result in Engine(MODEL_OF, cfg, slots=3, steps=2).run(requests):
        assert_alone(result.output, requests[result.request_id], cfg)


@pytest.mark.parametrize("cfg", [CALM, SHALLOW, LOSSLESS], ids=["calm", "shallow-deep", "lossless"])
def test_the_cache_is_reused_many_times(cfg):
    requests = [[first, 5, first + 1] for first in range(2, 30)]
    results = list(Engine(MODEL_OF, cfg, slots=4).run(requests))
    assert len(results) == len(requests)
    for result in results:
        assert_alone(result.output, requests[result.request_id], cfg)


def test_results_come_in_order_or_as_they_end():
    model = dataclasses.replace(MODEL_OF, config=dataclasses.replace(MODEL_OF.config, eos_token_id=1))
    requests = [LONG, *([first, 5] for first in range(2, 30))]
    as_they_end = [result.request_id for result in Engine(model, CALM, slots=2).run(requests)]
    assert sorted(as_they_end) == list(range(len(requests))) != as_they_end
    in_order = [result.request_id for result in Engine(model, CALM, slots=2).run(requests, in_order=True)]
    assert in_order == list(range(len(requests)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "request is []; allowed: a text, or at least one token id"),
        (" ", "request is ' '; allowed: a text that is not empty"),
        ("text", "model.tokenizer is None; allowed: token ids, or a model that has a tokenizer"),
        (None, "request is None; allowed: a text, or at least one token id"),
        (7, "request is 7; allowed: a text, or at least one token id"),
        ([0.5], "request is [0.5]; allowed: a text, or at least one token id"),
        ([5, 211], "request has ids from 5 to 211; allowed: 0 to 210"),
        ([5] * 33, "request has 33 tokens; allowed: at most 32"),
    ],
)
def test_a_bad_request_gets_its_own_error_and_the_others_go_on(bad, message):
    first, refused, last = Engine(MODEL_OF, CALM, slots=2, max_source_length=32).run(
        [[5], bad, [6]], in_order=True
    )
    assert str(refused.error) == message and refused.output is None
    assert_alone(first.output, [5], CALM)
    assert_alone(last.output, [6], CALM)


def test_cancelling_frees_the_slot_of_a_request_wherever_it_is():
    requests = [[first, 5] for first in range(2, 9)]
    engine = Engine(MODEL_OF, CALM, slots=2, steps=1)
    request_ids = [engine.submit(request) for request in requests]
    assert not engine.step()
    cancelled = [0, 3, 6]  # running, encoded ahead or waiting, waiting
    assert all(engine.cancel(request_ids[i]) for i in cancelled)
    assert not engine.cancel(request_ids[0]) and not engine.cancel(99)
    results = {result.request_id: result for result in engine.run([])}
    assert sorted(results) == request_ids
    for request_id, result in results.items():
        if request_id in cancelled:
            assert result.output is None and str(result.error) == "request was cancelled"
        else:
            assert_alone(result.output, requests[request_id], CALM)


def test_a_cancelled_request_does_not_hold_up_those_behind_it():
    engine, seen = Engine(MODEL_OF, CALM, slots=2, steps=1), []
    for result in engine.run([[first, 5] for first in range(2, 12)], in_order=True):
        if not seen:
            assert engine.cancel(4)
        seen.append((result.request_id, result.output is None))
    assert seen == [(request_id, request_id == 4) for request_id in range(10)]


def test_requests_are_taken_only_as_there_is_room():
    taken = []

    def coming():
        for first in range(2, 200):
            taken.append(first)
            yield [first]

    results = Engine(MODEL_OF, CALM, slots=2).run(coming())
    next(results)
    assert len(taken) <= 10
    assert len(list(results)) == 197


def test_no_bucket_waits_for_ever():
    engine = Engine(MODEL_OF, CALM, slots=2)
    endless = iter(lambda: [5, 6], None)
    ended = []
    for result in engine.run(item for pair in zip([LONG, *[[5]] * 500], endless, strict=False) for item in pair):
        ended.append(result.request_id)
        if result.request_id == 0:
            break
    assert ended[-1] == 0 and len(ended) < 100


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="slots is 0; allowed: at least 1"):
        Engine(MODEL_OF, CALM, slots=0)
    with pytest.raises(ValueError, match="prune_size is 212"):
        Engine(MODEL_OF, dataclasses.replace(DVP, prune_size=212))


def test_generate_text_equals_generate_on_the_tokenized_prompts():
    texts = dvp_jax.generate_text(lettered(), ["abc", "zebra"], DVP)
    out = run([[2, 3, 4, 1], [27, 6, 3, 19, 2, 1]], DVP)
    for index, text in enumerate(texts):
        length = out.lengths[index]
        assert text.tokens == out.tokens[index, :length].tolist()
        assert text.exit_layers == out.exit_layers[index, :length].tolist()
        assert text.text == " ".join(str(token) for token in text.tokens if token > 1)


def test_more_texts_than_slots_are_generated_as_in_one_batch():
    prompts = ["abc", "zebra", "q", "hello" * 9, "xyz"]
    few, batch = (dvp_jax.generate_text(lettered(), prompts, DVP, slots=slots) for slots in (2, 16))
    assert [text.tokens for text in few] == [text.tokens for text in batch]
    assert [text.text for text in few] == [text.text for text in batch]
    with pytest.raises(ValueError, match="slots is 0; allowed: at least 1"):
        dvp_jax.generate_text(lettered(), prompts, DVP, slots=0)


def test_texts_come_in_the_order_of_requests_that_must_all_be_good():
    engine = Engine(MODEL_OF, CALM, slots=2)
    requests = [[5], LONG, [6, 9, 4], [7, 8]]  # which are not decoded in this order
    for output, request in zip(engine.texts(requests), requests, strict=True):
        assert_alone(output, request, CALM)
    tokens = engine.work["tokens"]
    with pytest.raises(ValueError, match="at least one token id"):
        engine.texts([[5], []])
    assert engine.work["tokens"] == tokens, "nothing is decoded"


def test_work_counts_steps_tokens_and_the_layers_of_each_steps_deepest_row():
    engine = Engine(MODEL_OF, CALM, slots=8)
    requests = [[first, 5] for first in range(2, 10)]
    list(engine.run(requests))
    batch = run(requests, CALM)
    assert engine.work.pop("encode_s") > 0.0
    assert engine.work == {
        "steps": int(batch.lengths.max()),
        "tokens": int(batch.lengths.sum()),
        "layers": int(batch.exit_layers.max(axis=0).sum()),
    }


def test_nothing_is_compiled_again_for_other_requests():
    list(Engine(MODEL_OF, CALM, slots=2).run([[5], [6, 7], [8]]))
    programs = [f._cache_size() for f in (lanes._advance, lanes._refill)]
    list(Engine(MODEL_OF, dataclasses.replace(CALM, threshold=0.1), slots=2).run([[9, 8, 7]] * 2 + [[5]]))
    assert [f._cache_size() for f in (lanes._advance, lanes._refill)] == programs
