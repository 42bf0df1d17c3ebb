"""Byte pieces: how SentencePiece writes characters that have no piece, if it was trained with byte fallback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def use_byte_pieces(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Makes a tokenizer write rare characters as bytes, as its SentencePiece model does.

    The tokenizers of mT5 and UMT5 have a piece for each byte. Transformers does not use them: its class for T5
    reads rare characters as <unk>, and writes bytes as "<0xE2>". A tokenizer whose tokenizer.json asks for no byte
    fallback stays as it is.

    Args:
        tokenizer: as loaded by transformers; changed in place.
        folder: of the checkpoint.
    """
    if not set(_PIECES) <= tokenizer.get_vocab().keys():
        return
    from tokenizers import decoders, models

    backend, path = tokenizer.backend_tokenizer, folder / "tokenizer.json"
    asked = json.loads(path.read_text(encoding="utf-8"))["model"] if path.is_file() else {"byte_fallback": True}
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram" and asked.get("byte_fallback") and not model["byte_fallback"]:
        pieces = [(piece, score) for piece, score in model["vocab"]]
        backend.model = models.Unigram(pieces, model["unk_id"], byte_fallback=True)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])
