"""Losses and gradients against PyTorch's autograd, and the weights of depths."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.train.batches import Batch
from dvp_jax.train.losses import depth_weights
from dvp_jax.train.trainer import depth_sums
from tests.models import both
from tests.train.helpers import masked_batch

pytestmark = pytest.mark.usefixtures("quick_compiler")

SMOOTHING = 0.1


def peer_losses(peer, batch: Batch, smoothing: float) -> list[torch.Tensor]:
    """Hugging Face's loss at each depth, summed over tokens, by its own forward pass."""
    ids, mask, targets, target_mask = (
        torch.tensor(np.asarray(x)) for x in (batch.input_ids, batch.mask, batch.targets, batch.target_mask)
    )
    # A row that is all padding would be NaN nowhere, but is left out to be sure that ours ignores it.
    ids, mask, targets, target_mask = ids[:2].long(), mask[:2], targets[:2].long(), target_mask[:2]
    start = torch.full_like(targets[:, :1], peer.config.decoder_start_token_id)
    out = peer(
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, targets[:, :-1]], dim=1),
        output_hidden_states=True,
        use_cache=False,
    )
    _, *depths, last = out.decoder_hidden_states  # the last one is normed already
    normed = [peer.decoder.final_layer_norm(hidden) for hidden in depths] + [last]
    scale = peer.config.d_model**-0.5 if getattr(peer.config, "scale_decoder_outputs", True) else 1.0
    losses = []
    for hidden in normed:
        logits = peer.lm_head(hidden * scale)
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", label_smoothing=smoothing
        )
        losses.append((loss * target_mask).sum())
    return losses


@pytest.mark.parametrize(("variant", "smoothing"), [("t5", 0.0), ("t5.1.1", SMOOTHING), ("umt5", 0.0)])
def test_loss_and_gradient_of_each_depth_equal_those_of_pytorch(variant, smoothing):
    peer, model = both(variant)
    batch = masked_batch(model.config.vocab_size)
    depths = tuple(range(1, model.config.num_decoder_layers + 1))
    for depth, peer_loss in zip(depths, peer_losses(peer, batch, smoothing), strict=True):

        def loss_of(params, depth=depth):
            return depth_sums(model.config, params, batch, (depth,), label_smoothing=smoothing).loss[0]

        loss, gradient = jax.value_and_grad(loss_of)(model.params)
        assert float(loss) == pytest.approx(peer_loss.item(), rel=1e-5)
        peer.zero_grad()
        peer_loss.backward(retain_graph=True)
        ours = hugging_face_tensors(model.config, gradient)
        theirs = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
        # What PyTorch never touched, as the layers beyond the depth, has no gradient.
        assert {name for name, g in ours.items() if np.any(g)} <= set(theirs)
        for name, expected in theirs.items():
            expected = expected.numpy()
            error = np.linalg.norm(ours[name] - expected) / max(np.linalg.norm(expected), 1e-12)
            assert error < 1e-4, (depth, name)


def test_all_depths_at_once_give_what_each_gives_alone():
    _, model = both("t5")
    batch = masked_batch(model.config.vocab_size)
    together = depth_sums(model.config, model.params, batch, (1, 2, 3, 4))
    assert float(together.tokens) == 9
    for depth in (1, 2, 3, 4):
        alone = depth_sums(model.config, model.params, batch, (depth,))
        np.testing.assert_allclose(together.loss[depth - 1], alone.loss[0], rtol=1e-6)
        assert together.correct[depth - 1] == alone.correct[0]


def test_correct_counts_the_targets_that_are_argmax():
    peer, model = both("t5", spread=4.0)
    batch = masked_batch(model.config.vocab_size)
    with torch.no_grad():
        start = np.zeros_like(batch.targets[:2, :1])
        logits = peer(
            input_ids=torch.tensor(np.asarray(batch.input_ids[:2])).long(),
            attention_mask=torch.tensor(np.asarray(batch.mask[:2])).long(),
            decoder_input_ids=torch.tensor(np.concatenate([start, batch.targets[:2, :-1]], axis=1)).long(),
            use_cache=False,
        ).logits
    # The first token becomes the argmax: position 0 depends on no target.
    targets = batch.targets.at[:2, 0].set(logits[:, 0].argmax(-1).numpy())
    sums = depth_sums(
        model.config, model.params, Batch(batch.input_ids, batch.mask, targets, batch.target_mask), (4,)
    )
    assert sums.correct[0] >= 2
    wrong = targets.at[:2, 0].set((targets[:2, 0] + 1) % model.config.vocab_size)
    fewer = depth_sums(
        model.config, model.params, Batch(batch.input_ids, batch.mask, wrong, batch.target_mask), (4,)
    )
    assert fewer.correct[0] <= sums.correct[0] - 1


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        ("final", {}, {4: 1.0}),
        ("weighted", {}, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
        ("uniform", {}, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        ("geometric", {"ratio": 0.5}, {1: 1 / 15, 2: 2 / 15, 3: 4 / 15, 4: 8 / 15}),
        ("layers", {"layers": [4, 2]}, {2: 0.5, 4: 0.5}),
    ],
)
def test_depth_weights_are_those_of_the_papers(loss, options, expected):
    assert depth_weights(loss, 4, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "last"}, "loss is 'last'; allowed: final, weighted, uniform, geometric, layers"),
        ({"loss": "layers"}, r"layers is \[\]; allowed: at least one depth from 1 to 4"),
        ({"loss": "layers", "layers": [0, 2]}, r"layers is \[0, 2\]; allowed: at least one depth from 1 to 4"),
        ({"loss": "layers", "layers": [5]}, r"layers is \[5\]"),
        ({"loss": "geometric", "ratio": 0.0}, "ratio is 0.0; allowed: above 0, at most 1"),
    ],
)
def test_impossible_weights_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        depth_weights(num_layers=4, **options)
