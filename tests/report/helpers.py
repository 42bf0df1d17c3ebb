"""What a plot shows, read back from its SVG: matplotlib writes each text that it draws in a comment."""

from __future__ import annotations

import re
from pathlib import Path


def texts_of(path: Path) -> set[str]:
    """Every line of text in a plot."""
    return {
        line for text in re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL) for line in text.split("\n")
    }
