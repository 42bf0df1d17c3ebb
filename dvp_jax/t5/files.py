"""Files of a checkpoint folder, refused by name where they are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs"


def check_fetched(path: Path) -> None:
    """Raises ValueError where a file is the pointer that git-lfs puts in its place until it is fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                f"{path} is a pointer of git-lfs; allowed: the file itself, which `git lfs pull` fetches"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file is a pointer of git-lfs, is cut short, or holds anything else.
    """
    check_fetched(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; allowed: a JSON object")
    return content
