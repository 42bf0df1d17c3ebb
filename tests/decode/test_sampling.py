"""Sampling: frequencies of what is drawn against Hugging Face's probabilities, and what a draw depends on."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

import dvp_jax
from dvp_jax.decode.token_loop import decode_tokens
from tests.decode.helpers import DVP, FULL, LOSSLESS, MODEL, SHALLOW, STATE, assert_same, padded, run
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")

DRAWN = {"temperature": 1.3, "seed": 11}
SOURCE = [183, 97, 78]
ROWS = [SOURCE, [4, 3], [69], [135, 116, 19]]
SETTINGS = {"full": FULL, "dvp": DVP, "state": STATE, "shallow_deep": SHALLOW}


def draw(cfg, count=2048):
    """The first two tokens of many requests with the same source."""
    cfg = dataclasses.replace(cfg, max_new_tokens=2)
    model = both(*MODEL)[1]
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=()))
    return dvp_jax.generate(model, *padded([SOURCE] * count), cfg).tokens


@torch.no_grad()
def probabilities(start, warpers, depth=None):
    """Hugging Face's distribution of the next token, and the logits of a depth before the last one."""
    peer = both(*MODEL)[0]
    ids = torch.tensor([SOURCE])
    out = peer(input_ids=ids, decoder_input_ids=torch.tensor([[0, *start]]), output_hidden_states=True)
    logits = out.logits[:, -1]
    if depth is not None:  # h_l, before the final norm
        hidden = peer.decoder.final_layer_norm(out.decoder_hidden_states[depth][:, -1])
        logits = peer.lm_head(hidden * peer.config.d_model**-0.5)
    return torch.softmax(warpers(None, logits), dim=-1)[0].double().numpy()


def assert_drawn_from(tokens, expected):
    """Expects counts of tokens that a chi-square test does not tell from a distribution."""
    seen = np.bincount(tokens, minlength=len(expected))
    assert not seen[expected == 0].any()
    counts = expected * len(tokens)
    rare = counts < 5  # too few for the test: one cell together
    seen, counts = (np.append(x[~rare], x[rare].sum()) for x in (seen, counts))
    kept = counts > 0
    statistic = stats.chisquare(seen[kept], counts[kept] * seen.sum() / counts[kept].sum())
    assert statistic.pvalue > 1e-3


WARPERS = {
    "temperature": ({}, []),
    "top_p": ({"top_p": 0.6}, [transformers.TopPLogitsWarper(0.6)]),
    "both": ({"top_k": 12, "top_p": 0.8}, [transformers.TopKLogitsWarper(12), transformers.TopPLogitsWarper(0.8)]),
}


@pytest.mark.parametrize("name", WARPERS)
def test_tokens_are_drawn_from_hugging_faces_distribution(name):
    fields, others = WARPERS[name]
    warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(1.3), *others])
    tokens = draw(dataclasses.replace(FULL, **DRAWN, **fields))
    first = probabilities([], warpers)
    assert_drawn_from(tokens[:, 0], first)
    likeliest = int(first.argmax())  # the second token is drawn for the first one, with other noise
    assert_drawn_from(tokens[tokens[:, 0] == likeliest, 1], probabilities([likeliest], warpers))


def test_a_token_that_exits_is_drawn_from_the_kept_tokens_of_its_depth():
    warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(1.3)])
    kept = np.argsort(-probabilities([], warpers, depth=1))[: DVP.prune_size]
    expected = np.zeros(211)
    expected[kept] = probabilities([], warpers, depth=2)[kept]
    cfg = dataclasses.replace(DVP, min_exit_layer=2, threshold=0.0, **DRAWN)
    assert_drawn_from(draw(cfg)[:, 0], expected / expected.sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_request_draws_depends_on_its_seed_alone(name):
    cfg = dataclasses.replace(SETTINGS[name], **DRAWN, top_p=0.9)
    batch = run(ROWS, cfg)
    assert_same(batch, run(ROWS, cfg))
    assert_same(batch, run(ROWS[1:], dataclasses.replace(cfg, seed=cfg.seed + 1)), slice(1, 4))
    other = run(ROWS, dataclasses.replace(cfg, seed=1000))
    assert any(list(one) != list(another) for one, another in zip(batch.tokens, other.tokens, strict=True))
    likeliest = run(ROWS, dataclasses.replace(cfg, temperature=1e-6, top_p=1.0))
    np.testing.assert_array_equal(likeliest.tokens, run(ROWS, SETTINGS[name]).tokens)


def test_a_request_alone_draws_what_it_draws_in_a_batch():
    cfg = dataclasses.replace(DVP, **DRAWN, top_k=20)
    alone = run(ROWS[2:3], dataclasses.replace(cfg, seed=cfg.seed + 2))
    assert_same(run(ROWS, cfg), alone, slice(2, 3))


@pytest.mark.parametrize(
    ("waiting", "fields"),
    [(1, {}), (3, {"prune_size": None}), (8, {"prune_rule": "recent", "prune_size": 40})],
    ids=str,
)
def test_lossless_draws_the_text_that_full_draws(waiting, fields):
    drawn = {"temperature": 0.5, "top_p": 0.95, "max_new_tokens": 12}
    cfg = dataclasses.replace(LOSSLESS, max_waiting=waiting, threshold=0.2, **fields, **drawn)
    out, full = run(ROWS, cfg), run(ROWS, dataclasses.replace(FULL, **drawn))
    np.testing.assert_array_equal(out.tokens, full.tokens)
    assert waiting == 1 or out.drafts.corrected.any()


def test_other_values_do_not_compile_again():
    cfg = dataclasses.replace(DVP, **DRAWN, top_k=20)
    run(ROWS, cfg)
    before = decode_tokens._cache_size()
    run(ROWS, dataclasses.replace(cfg, temperature=0.7, top_k=9, seed=3))
    assert decode_tokens._cache_size() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, "temperature is -0.5; allowed: a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan; allowed"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p is 0.0; allowed: a number above 0, to 1"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; allowed: an integer of at least 1"),
        ({"temperature": 1.0, "seed": 0.5}, "seed is 0.5; allowed: an integer of at least 0"),
        ({"temperature": 1.0, "method": "oracle"}, "temperature is 1.0; allowed with method 'oracle': 0"),
        ({"temperature": 1.0, "unembedding": "int8"}, "unembedding is 'int8'; allowed with a temperature above 0"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dvp_jax.DecodeConfig(**fields)
