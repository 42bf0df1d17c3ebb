"""Logits of every depth from PyTorch, and slow and simple ways to read them."""

from __future__ import annotations

import numpy as np
import torch


@torch.no_grad()
def depth_logits(peer, source: list[int], text: list[int]) -> np.ndarray:
    """Logits (tokens, depths, vocabulary) of a text, from the hidden states that Hugging Face returns.

    Args:
        peer: with an unembedding of its own, so that nothing is scaled.
        source: ids of the prompt.
        text: ids without a start token.
    """
    inputs = torch.tensor([[peer.config.decoder_start_token_id, *text[:-1]]])
    out = peer(
        input_ids=torch.tensor([source]), decoder_input_ids=inputs, output_hidden_states=True, use_cache=False
    )
    hidden = [peer.decoder.final_layer_norm(states[0]) for states in out.decoder_hidden_states[1:-1]]
    hidden.append(out.decoder_hidden_states[-1][0])  # the last one comes with the norm
    return torch.stack([peer.lm_head(states) for states in hidden], dim=1).numpy()


def by_likelihood(logits: np.ndarray) -> np.ndarray:
    """Ids from the likeliest on; of equally likely ones the smaller id first."""
    return np.argsort(-logits, axis=-1, kind="stable")


def ranks(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Rank of each token at each depth, 0 the likeliest: (tokens, depths)."""
    return np.argmax(by_likelihood(logits) == np.array(tokens)[:, None, None], axis=-1)


def pruned(logits: np.ndarray, prune_layer: int, prune_size: int) -> np.ndarray:
    """The same with all but the K likeliest ids of depth p at minus infinity, at depths beyond it but the last."""
    kept = np.zeros((logits.shape[0], logits.shape[2]), bool)
    np.put_along_axis(kept, by_likelihood(logits[:, prune_layer - 1])[:, :prune_size], True, axis=-1)
    out = logits.copy()
    out[:, prune_layer:-1] = np.where(kept[:, None], out[:, prune_layer:-1], -np.inf)
    return out


def confidences(logits: np.ndarray) -> np.ndarray:
    """Probability of the best minus that of the second best."""
    best = np.sort(torch.softmax(torch.from_numpy(logits), dim=-1).numpy(), axis=-1)
    return best[..., -1] - best[..., -2]


def count_early_exits(confidences: np.ndarray, agrees: np.ndarray, threshold: float) -> tuple[int, int]:
    """How many tokens exit, and how many of them with the right token: token by token, depth by depth."""
    exits = right = 0
    for row, agreed in zip(confidences.tolist(), agrees.tolist(), strict=True):
        for confidence, agree in zip(row, agreed, strict=True):
            if confidence > threshold:
                exits, right = exits + 1, right + agree
                break
    return exits, right
