"""Constraints on the text against the logits processors of Hugging Face, in every method."""

import dataclasses

import numpy as np
import pytest
import torch

import dvp_jax
from dvp_jax.decode.api import encode
from dvp_jax.decode.token_loop import decode_tokens
from dvp_jax.decode.trace import trace
from dvp_jax.evaluate import check
from tests.decode import helpers
from tests.decode.helpers import COMMON, DVP, FULL, LOSSLESS, MODEL, padded, run
from tests.models import both
from tests.reference import reference_decode

pytestmark = pytest.mark.usefixtures("quick_compiler")

ROWS = [[183, 97, 78], [4, 3], [69], [135, 116, 19], [77, 78, 79], [200], [9, 8, 7, 6]]
CONSTRAINTS = {
    "min_new_tokens": {"min_new_tokens": 9},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "longer than the text": {"no_repeat_ngram_size": 40},
    "forced_bos_token_id": {"forced_bos_token_id": 77},
    "all": {"min_new_tokens": 6, "no_repeat_ngram_size": 2, "forced_bos_token_id": 0},
}
ALL = CONSTRAINTS["all"]
METHODS = {
    "calm": helpers.CALM,
    "dvp": DVP,
    "mass": helpers.MASS,
    "decay": helpers.DECAY,
    "recent": dataclasses.replace(DVP, prune_rule="recent", prune_size=40),
    "state": helpers.STATE,
    "lossless": LOSSLESS,
    "shallow_deep": helpers.SHALLOW,
    "oracle": helpers.ORACLE,
}
RARE = ("mass", "decay", "shallow_deep", "oracle")
"""Methods that run in the slow tests only, to save time."""

ENDS = (13, 138, 75, 195, 157)
"""Tokens that the model likes to repeat, taken as end tokens, so that texts would end early."""


def ending():
    """The tiny model of `run` with these end tokens."""
    model = both(*MODEL)[1]
    config = dataclasses.replace(model.config, eos_token_id=ENDS)
    return dataclasses.replace(model, config=config, common_tokens=COMMON)


@torch.no_grad()
def generated_by_hugging_face(ids, **fields):
    ids, ends = torch.tensor([ids]), list(ENDS)
    # Its cache has as many layers as the encoder.
    out = both(*MODEL)[0].generate(ids, do_sample=False, eos_token_id=ends, use_cache=False, **fields)
    return out[0, 1:].tolist()  # without the start token


def texts(decoded):
    return [tokens[:length].tolist() for tokens, length in zip(decoded.tokens, decoded.lengths, strict=True)]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_full_writes_what_hugging_face_writes(name):
    fields = {"max_new_tokens": 16, **CONSTRAINTS[name]}
    expected = [generated_by_hugging_face(row, **fields) for row in ROWS]
    free = [generated_by_hugging_face(row, max_new_tokens=16) for row in ROWS]
    assert name == "longer than the text" or expected != free
    assert texts(dvp_jax.generate(ending(), *padded(ROWS), dataclasses.replace(FULL, **fields))) == expected


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in METHODS])
def test_every_depth_reads_the_tokens_that_are_left(name):
    cfg = dataclasses.replace(METHODS[name], **ALL)
    out, peer = run(ROWS, cfg), both(*MODEL)[0]
    fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    del fields["branch_every"], fields["capture"], fields["unembedding"]
    del fields["temperature"], fields["top_k"], fields["top_p"], fields["seed"]
    for row, ids in enumerate(ROWS):
        expected = reference_decode(peer, ids, **fields, common=COMMON.tolist())
        if expected.margin > 1e-3:  # else a tie
            assert texts(out)[row] == expected.tokens
            assert out.exit_layers[row, : out.lengths[row]].tolist() == expected.exit_layers


@pytest.mark.parametrize("waiting", [1, 3])
def test_lossless_writes_the_text_of_full(waiting):
    model, fields = ending(), {"max_new_tokens": 16, **ALL}
    cfg = dataclasses.replace(LOSSLESS, max_waiting=waiting, threshold=0.1, **fields)
    out, full = (dvp_jax.generate(model, *padded(ROWS), of) for of in (cfg, dataclasses.replace(FULL, **fields)))
    assert texts(out) == texts(full)
    assert waiting == 1 or out.drafts.corrected.any()
    drawn = {"temperature": 0.8, "top_p": 0.9}
    out, full = (
        dvp_jax.generate(model, *padded(ROWS), dataclasses.replace(of, **drawn))
        for of in (cfg, dataclasses.replace(FULL, **fields))
    )
    assert texts(out) == texts(full)


def test_a_trace_reads_what_decoding_read():
    model, cfg = both(*MODEL)[1], dataclasses.replace(DVP, min_exit_layer=2, **ALL)
    out = run(ROWS, cfg)
    read = trace(model, encode(model, *padded(ROWS)), out.tokens, out.exit_layers, cfg)
    for row, length in enumerate(out.lengths):
        exits = out.exit_layers[row, :length] - 1
        at_exit = [values[row, np.arange(length), exits] for values in (read.candidates, read.confidences)]
        np.testing.assert_array_equal(at_exit[0], out.tokens[row, :length])
        np.testing.assert_allclose(at_exit[1], out.confidences[row, :length], atol=1e-3)


def test_requests_have_constraints_of_their_own_and_nothing_is_compiled_for_them():
    cfg = dataclasses.replace(DVP, max_new_tokens=12, **ALL)
    engine = dvp_jax.Engine(ending(), cfg, slots=3)
    changes = [{}, {"min_new_tokens": 0}, {"forced_bos_token_id": 5}, {"forced_bos_token_id": None}]
    ids = [engine.submit(ROWS[0], **change) for change in changes]
    results = {result.request_id: result for result in engine.run([])}
    for request_id, change in zip(ids, changes, strict=True):
        alone = dvp_jax.generate(ending(), *padded(ROWS[:1]), dataclasses.replace(cfg, **change))
        assert results[request_id].output.tokens == texts(alone)[0]
    before = decode_tokens._cache_size()
    dvp_jax.generate(
        ending(), *padded(ROWS[:1]), dataclasses.replace(cfg, min_new_tokens=3, forced_bos_token_id=9)
    )
    assert decode_tokens._cache_size() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_new_tokens": -1}, "min_new_tokens is -1; allowed: an integer of at least 0"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size is 1.5; allowed: an integer of at least 0"),
        ({"forced_bos_token_id": True}, "forced_bos_token_id is True; allowed: an integer of at least 0"),
        ({"min_new_tokens": 2, "unembedding": "int8"}, "unembedding is 'int8'; allowed with min_new_tokens"),
    ],
)
def test_bad_constraints_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dvp_jax.DecodeConfig(**fields)


def test_a_first_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="forced_bos_token_id is 211; allowed: an integer from 0 to 210"):
        run(ROWS, dataclasses.replace(DVP, forced_bos_token_id=211))


def test_the_check_of_a_model_knows_constraints():
    ids, mask = padded(ROWS[:3])
    cfg = dataclasses.replace(FULL, **ALL)
    full = dvp_jax.generate(ending(), ids, mask, cfg)
    assert check._greedy(ending(), ids, mask.astype(bool), cfg, full) == []
    free = dvp_jax.generate(ending(), ids, mask, FULL)
    assert len(check._greedy(ending(), ids, mask.astype(bool), cfg, free)) == 3
