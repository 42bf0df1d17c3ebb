"""The table of tokens against PyTorch's hidden states."""

import dataclasses

import jax
import numpy as np
import pytest

import dvp_jax
from dvp_jax.analysis.tokens import full_model_texts, load_sources, reference_texts, token_table
from tests.analysis.helpers import confidences, depth_logits, pruned, ranks
from tests.launching import SENTENCES, VOCAB_SIZE, Sentences

pytestmark = pytest.mark.usefixtures("quick_compiler")

CALM = dvp_jax.DecodeConfig(method="calm", min_exit_layer=1)
DVP = dvp_jax.DecodeConfig(method="dvp", prune_layer=2, min_exit_layer=2, prune_size=8)
TOKENS = 5


@pytest.fixture(scope="module")
def model(checkpoint):
    return dvp_jax.load_model(checkpoint.folder)


@pytest.fixture(scope="module")
def sources(model):
    return load_sources(model, Sentences(SENTENCES), batch_size=4)


@pytest.fixture(scope="module")
def texts(model, sources):
    return full_model_texts(model, sources, TOKENS)


@pytest.fixture(scope="module")
def table(model, sources, texts):
    return token_table(model, sources, texts, {"whole": CALM, "pruned": DVP})


@pytest.fixture(scope="module")
def logits(checkpoint, texts):
    rows = zip(SENTENCES, texts, strict=True)
    return np.concatenate([depth_logits(checkpoint.peer, checkpoint.ids(each), text) for each, text in rows])


def test_texts_of_the_full_model_are_the_slow_decoders(checkpoint, texts):
    for sentence, text in zip(SENTENCES, texts, strict=True):
        assert text == checkpoint.decode(sentence, method="full", max_new_tokens=TOKENS).tokens


def test_every_token_of_every_text_is_a_row(table, texts):
    rows = zip(table.text.tolist(), table.position.tolist(), table.token.tolist(), strict=True)
    assert list(rows) == [(i, t, token) for i, text in enumerate(texts) for t, token in enumerate(text)]


def test_ranks_are_the_places_in_pytorchs_sorted_logits(table, logits):
    np.testing.assert_array_equal(table.ranks, ranks(logits, table.token.tolist()))
    assert table.ranks[:, 0].max() > 50 and (table.ranks[:, -1] == 0).all()


@pytest.mark.parametrize("name", ["whole", "pruned"])
def test_readings_are_pytorchs_best_candidates(table, logits, name):
    seen = pruned(logits, 2, 8) if name == "pruned" else logits
    np.testing.assert_array_equal(table.readings[name].candidates, seen.argmax(axis=-1))
    np.testing.assert_allclose(table.readings[name].confidences, confidences(seen), atol=1e-4)
    np.testing.assert_array_equal(table.agrees(name), seen.argmax(axis=-1) == table.token[:, None])


def test_pruning_changes_the_reading_between_p_and_the_last_depth_only(table):
    whole, kept = (table.readings[name].confidences for name in ("whole", "pruned"))
    assert (whole != kept).any(axis=0).tolist() == [False, False, True, False]


def test_batches_change_nothing(model, table, texts):
    single = load_sources(model, Sentences(SENTENCES), batch_size=1)
    assert full_model_texts(model, single, TOKENS) == texts
    alone = token_table(model, single, texts, {"pruned": DVP})
    np.testing.assert_array_equal(alone.ranks, table.ranks)
    # Sources alone are few enough rows for the other form of a product, which adds up in another order.
    np.testing.assert_allclose(
        alone.readings["pruned"].confidences, table.readings["pruned"].confidences, atol=1e-4
    )


def test_references_are_the_first_ones_with_the_end_token(checkpoint, model):
    task = Sentences(["bagu", "bele beme"])
    task.examples = [
        dvp_jax.data.Example("0", "bagu", ("dada dade", "bagu")),
        dvp_jax.data.Example("1", "bele beme", ("bibo bibu bida",)),
    ]
    sources = load_sources(model, task)
    assert reference_texts(sources, 10) == [checkpoint.ids("dada dade"), checkpoint.ids("bibo bibu bida")]
    with pytest.warns(UserWarning, match="1 of 2 references are longer than 3"):
        assert reference_texts(sources, 3) == [checkpoint.ids("dada dade"), checkpoint.ids("bibo bibu")]


def test_texts_of_a_model_that_overflows_are_refused(model, sources, texts):
    params = jax.tree.map(lambda x: x * np.inf if x.shape[:1] == (VOCAB_SIZE,) else x, model.params)
    with pytest.raises(
        ValueError, match=r"^example id 0: logits of token 1 at depth 1 are not finite; allowed: a m"
    ):
        token_table(dataclasses.replace(model, params=params), sources, texts, {"whole": CALM})


def test_limit_takes_the_first_examples(model):
    assert [
        example.prompt for example in load_sources(model, Sentences(SENTENCES), limit=2).examples
    ] == SENTENCES[:2]


@pytest.mark.parametrize("name", ["batch_size", "limit"])
def test_nothing_to_do_is_refused(model, name):
    with pytest.raises(ValueError, match=f"{name} is 0; allowed: at least 1"):
        load_sources(model, Sentences(SENTENCES), **{name: 0})
