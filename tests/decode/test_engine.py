"""The engine: the text of each request is that of the request alone, whatever runs beside it."""

import contextlib
import dataclasses
import statistics
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.decode import api, lanes
from dvp_jax.decode.engine import Engine
from tests.decode.helpers import (
    CALM,
    DECAY,
    DVP,
    FULL,
    LOSSLESS,
    MODEL,
    ORACLE,
    SHALLOW,
    STATE,
    Letters,
    lettered,
    padded,
    run,
)
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


SETTINGS = {
    "requests": prompts,
    "cfg": st.sampled_from([DVP, SHALLOW, LOSSLESS, CALM, STATE, DECAY, ORACLE, FULL]),
    "steps": st.sampled_from([1, 3, 32]),
    "arrivals": st.lists(st.integers(0, 3), min_size=9, max_size=9),
}


@settings(max_examples=3)
@given(**SETTINGS)
def test_each_request_equals_the_request_alone(requests, cfg, steps, arrivals):
    check_requests(requests, cfg, steps, arrivals)


@pytest.mark.slow
@settings(max_examples=40)
@given(**SETTINGS)
def test_each_of_many_requests_equals_the_request_alone(requests, cfg, steps, arrivals):
    check_requests(requests, cfg, steps, arrivals)


def check_requests(requests, cfg, steps, arrivals):
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
        ("a\ud83d", "request has '\\ud83d', half a surrogate pair, as character 2; allowed: whole characters"),
        ("text", "model.tokenizer is None; allowed: token ids, or a model that has a tokenizer"),
        (None, "request is None; allowed: a text, or at least one token id"),
        (7, "request is 7; allowed: a text, or at least one token id"),
        ([0.5], "request is [0.5]; allowed: a text, or at least one token id"),
        (
            np.array([[5, 6], [7, 8]]),
            "request is array([[5, 6], [7, 8]]); allowed: a text, or at least one token id",
        ),
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


def test_a_request_may_hold_the_first_and_the_last_id():
    (result,) = Engine(MODEL_OF, CALM, slots=2).run([[0, 210, 5]])
    assert_alone(result.output, [0, 210, 5], CALM)


@pytest.mark.parametrize("array", [np.array, jnp.array, torch.tensor, tuple], ids=lambda array: array.__name__)
def test_ids_may_be_an_array_of_any_library(array):
    (result,) = Engine(MODEL_OF, CALM, slots=2).run([array([5, 6])])
    assert_alone(result.output, [5, 6], CALM)


REQUESTS = [[first, 5] for first in range(2, 9)]


def assert_ended(results, errors=(), requests=REQUESTS, cfg=CALM):
    """Expects one result for each request: an error for some, and for the others the text of the request alone."""
    assert sorted(result.request_id for result in results) == list(range(len(requests)))
    assert {result.request_id for result in results if result.error} == set(errors)
    for result in results:
        if not result.error:
            assert_alone(result.output, requests[result.request_id], cfg)


def fails(monkeypatch, name, error, at, module=lanes):
    """Lets a function of a module fail at its `at`-th call, after its work, so that arrays are donated."""
    function, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        out = function(*args, **kwargs)
        if len(calls) == at:
            raise error
        return out

    monkeypatch.setattr(module, name, failing)


FUNCTIONS = ["encode", "_refill", "_advance", "to_text", "decode_arguments"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_error_is_the_result_of_the_requests_that_met_it_and_the_others_go_on(monkeypatch, name):
    fails(monkeypatch, name, RuntimeError("out of memory"), at=1)
    results = list(Engine(MODEL_OF, CALM, slots=2, steps=1).run(REQUESTS))
    assert_ended(results, errors={0} if name == "to_text" else {0, 1})
    assert {str(result.error) for result in results if result.error} == {"out of memory"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_after_an_interrupt_the_engine_goes_on_with_every_request(monkeypatch, name):
    fails(monkeypatch, name, KeyboardInterrupt(), at=1 if name == "decode_arguments" else 2)
    engine, results = Engine(MODEL_OF, CALM, slots=2, steps=1), []
    with pytest.raises(KeyboardInterrupt):
        results.extend(engine.run(REQUESTS[:4]))
    results += engine.run(REQUESTS[4:], in_order=True)
    assert_ended(results)


def test_a_tokenizers_error_is_that_of_the_request():
    class Fails(Letters):
        def __call__(self, text):
            raise KeyError(text)

    engine = Engine(dataclasses.replace(MODEL_OF, tokenizer=Fails()), CALM, slots=2)
    text, ids = engine.run(["abc", [5]], in_order=True)
    assert isinstance(text.error, KeyError) and text.output is None
    assert_alone(ids.output, [5], CALM)


def test_results_that_nobody_took_stay():
    def coming():
        yield from REQUESTS[:3]
        raise OSError("no more lines")

    engine, results = Engine(MODEL_OF, CALM, slots=2), []
    engine.submit([])
    with contextlib.suppress(OSError):
        results.extend(engine.run(coming()))
    for request in REQUESTS[3:]:
        engine.submit(request)
    for result in engine.run([]):
        results.append(result)
        break
    results += engine.step()
    results += engine.run([], in_order=True)
    assert_ended(results, errors=[0], requests=[[], *REQUESTS])


def test_in_order_begins_with_requests_that_were_submitted_before():
    engine = Engine(MODEL_OF, CALM, slots=2)
    for request in [REQUESTS[0], [], REQUESTS[2]]:
        engine.submit(request)
    results = list(engine.run(REQUESTS[3:], in_order=True))
    assert [result.request_id for result in results] == list(range(len(REQUESTS)))


def test_a_second_run_is_refused_until_the_first_has_ended():
    engine = Engine(MODEL_OF, CALM, slots=2)
    first = engine.run(REQUESTS)
    results = [next(first)]
    with pytest.raises(RuntimeError, match="another run of this engine has not ended; allowed: one at a time"):
        next(engine.run([]))
    assert_alone(engine.texts([[5]])[0], [5], CALM)
    first.close()
    assert_ended(results + list(engine.run([]))[: len(REQUESTS)])


def test_texts_leaves_the_results_of_other_requests():
    engine = Engine(MODEL_OF, CALM, slots=2)
    engine.submit(REQUESTS[0])
    assert_alone(engine.texts([REQUESTS[1]])[0], REQUESTS[1], CALM)
    assert_ended(engine.step(), requests=REQUESTS[:1])


def test_texts_that_fail_leave_nothing_behind(monkeypatch):
    engine = Engine(MODEL_OF, CALM, slots=2)
    with monkeypatch.context() as patch:
        fails(patch, "_advance", MemoryError(), at=2)
        with pytest.raises(MemoryError):
            engine.texts(REQUESTS)
    assert not engine.step()
    assert_alone(engine.texts([[5]])[0], [5], CALM)


def test_threads_share_an_engine():
    engine, taken = Engine(MODEL_OF, CALM, slots=2, steps=2), []
    submitted = threading.Barrier(3)

    def work(requests):
        ids = [engine.submit(request) for request in requests]
        engine.cancel(ids[0])
        submitted.wait()
        while results := engine.step():
            taken.extend(results)

    threads = [threading.Thread(target=work, args=[[[5, 6]] * 6]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken += engine.run([])
    assert sorted(result.request_id for result in taken) == list(range(18))
    assert sum(result.output is None for result in taken) == 3


def test_bookkeeping_takes_no_longer_with_many_waiting_requests():
    engine = Engine(MODEL_OF, CALM, slots=2, steps=1)

    def median_seconds(call):
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def seconds(count):
        last = [engine.submit([5, 6]) for _ in range(count)][-1]
        newest = iter(range(last, 0, -1))
        return median_seconds(engine.step), median_seconds(lambda: engine.cancel(next(newest)))

    few, many = seconds(100), seconds(50_000)
    assert all(slow < 5 * fast + 1e-4 for fast, slow in zip(few, many, strict=True)), (few, many)


def spoiled(encode):
    """`encode` with keys and values that are NaN for the sources with id 7."""

    def encode_spoiled(*args, **kwargs):
        encoded = encode(*args, **kwargs)
        bad = jnp.any(encoded.ids == 7, axis=1)[:, None, None, None]
        cross = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), encoded.cross)
        return dataclasses.replace(encoded, cross=cross)

    return encode_spoiled


@pytest.mark.parametrize("cfg", [CALM, SHALLOW, LOSSLESS], ids=["calm", "shallow-deep", "lossless"])
def test_logits_that_are_not_finite_are_the_error_of_their_request(monkeypatch, cfg):
    monkeypatch.setattr(lanes, "encode", spoiled(lanes.encode))
    requests = [[7], *REQUESTS[:3]]  # of which one follows in the slot of the first
    results = list(Engine(MODEL_OF, cfg, slots=2).run(requests))
    assert_ended(results, errors=[0], requests=requests, cfg=cfg)
    message = "logits of token 1 are not finite; allowed: a model that does not overflow"
    assert [str(result.error) for result in results if result.error] == [message]


@pytest.mark.parametrize("slots", [2, 16])
def test_a_prompt_whose_logits_are_not_finite_is_named(monkeypatch, slots):
    for module in (api, lanes):
        monkeypatch.setattr(module, "encode", spoiled(module.encode))
    with pytest.raises(ValueError, match=r"prompts\[2\]: logits of token 1 are not finite"):
        dvp_jax.generate_text(lettered(), ["a", "b", "xf", "c"], DVP, slots=slots)


def with_an_encoded_request_that_waits():
    """An engine, the id of a request that is encoded and waits for a slot, and the results so far."""
    engine, results = Engine(MODEL_OF, CALM, slots=2, steps=1), []
    for request in REQUESTS:
        engine.submit(request)
    results += engine.step()
    assert engine.cancel(0)  # one slot is free, two requests are encoded
    results += engine.step()
    ((request_id, _),) = engine._lanes[32]._prefilled
    return engine, request_id, results


def test_a_request_that_is_encoded_and_waits_for_a_slot_is_cancelled_alone():
    engine, request_id, results = with_an_encoded_request_that_waits()
    assert engine.cancel(request_id)
    results += engine.run([])
    assert_ended(results, errors=[0, request_id])


def test_after_an_interrupt_a_request_that_was_encoded_is_encoded_again(monkeypatch):
    engine, _, results = with_an_encoded_request_that_waits()
    fails(monkeypatch, "_advance", KeyboardInterrupt(), at=1)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    results += engine.run([])
    assert_ended(results, errors=[0])


def test_slots_are_refilled_when_an_eighth_of_them_is_free_and_requests_wait():
    model = dataclasses.replace(MODEL_OF, config=dataclasses.replace(MODEL_OF.config, eos_token_id=163))
    requests = [[first, 5] for first in range(2, 18)]
    lengths = dvp_jax.generate(model, *padded(requests), CALM).lengths
    first, second = sorted(lengths)[:2]
    assert first < second < 8, "else it does not matter how many are free"
    for waiting, steps in (([[5]], second), ([], 8)):
        engine = Engine(model, CALM, slots=16)
        for request in requests + waiting:
            engine.submit(request)
        ended = [result.request_id for result in engine.step()]
        assert engine.work["steps"] == steps
        assert sorted(ended) == np.flatnonzero(lengths <= steps).tolist()


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


def test_by_default_a_request_has_at_most_512_tokens_of_any_id():
    engine = Engine(MODEL_OF, CALM)
    engine.submit([5] * 513)
    engine.submit([0, 210])
    assert engine.cancel(1), "it waits"
    too_long, _ = engine.step()
    assert str(too_long.error) == "request has 513 tokens; allowed: at most 512"


def test_impossible_settings_are_refused():
    for name, value in (("slots", 0), ("slots", 2.5), ("steps", None), ("max_source_length", "512")):
        with pytest.raises(ValueError, match=f"^{name} is {value!r}; allowed: an integer of at least 1$"):
            Engine(MODEL_OF, CALM, **{name: value})
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
    with pytest.raises(ValueError, match="slots is 0; allowed: an integer of at least 1"):
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
