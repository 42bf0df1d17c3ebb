"""Tables and sections: built once, printed as Markdown and shown in the HTML report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

# 1, -0.5, 5.56e+06, 12,000, 3.12 of 8, 25.06 to 25.61, 38,912 to 38,980, 88 %, 1.13x
_NUMBER = re.compile(r"[-+]?[\d.,]*\d(e[-+]?\d+)?( (of|to) [\d.,]*\d| ?[%x])?")

# Control characters, separators of lines, marks that turn the direction of text, and halves of characters.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, lines: bool = False) -> str:
    """Writes characters that would break a line, steer a terminal or cannot be encoded as Python does: \\x1b.

    Args:
        text: from data or a model.
        lines: whether newlines stay.
    """
    if lines:
        return "\n".join(map(visible, text.split("\n")))
    return _UNSEEN.sub(lambda unseen: unseen[0].encode("unicode_escape").decode(), text)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of formatted cells. Columns that hold numbers only are aligned to the right.

    Attributes:
        head: names of the columns.
        rows: texts of the cells, one row after the other; as many cells in each row as in `head`. They are shown
            as `visible` writes them.

    Raises:
        ValueError: a row has more or fewer cells than `head`.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.head):
                raise ValueError(f"rows[{index}] has {len(row)} cells; allowed: {len(self.head)}, as in head")

    @property
    def numeric(self) -> list[bool]:
        """For each column: whether it holds numbers, and apart from them only empty cells."""
        columns = [[row[index] for row in self.rows if row[index]] for index in range(len(self.head))]
        return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for cells in columns]

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, without a newline at its end."""
        rule = ["---:" if numeric else "---" for numeric in self.numeric]
        return "\n".join(_line(cells) for cells in (self.head, rule, *self.rows))


def _line(cells: Sequence[str]) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(visible(cell).replace("|", "\\|") for cell in cells) + " |"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: the heading; empty for none.
        content: paragraphs of plain text and tables, in order. Paragraphs keep their newlines, and are else shown
            as `visible` writes them.
        plots: captions and SVG files. The HTML report shows them below the content.
    """

    title: str
    content: Sequence[str | Table] = ()
    plots: Sequence[tuple[str, Path]] = ()

    def markdown(self) -> str:
        """Title and content as Markdown, without the plots and without a newline at the end."""
        title = [f"{self.title}:"] if self.title else []
        return "\n\n".join(
            visible(part, lines=True) if isinstance(part, str) else part.markdown()
            for part in (*title, *self.content)
        )


def print_report(sections: Sequence[Section], report: Path) -> None:
    """Prints sections as Markdown, and on the last line where the HTML report is."""
    print(*(section.markdown() for section in sections), f"report: {report}", sep="\n\n")
