"""What devices send each other for one token: the collectives in the text of a compiled decode program."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives by kind.

    Attributes:
        count: how many there are of each kind.
        bytes: bytes of their results on one device.
    """

    count: Counter[str]
    bytes: Counter[str]

    def __add__(self, other: Collectives) -> Collectives:
        return Collectives(self.count + other.count, self.bytes + other.bytes)


def per_token(hlo: str, choose: Callable[..., Collectives]) -> Collectives:
    """The collectives of one pass through the token loop.

    Args:
        hlo: the text of the compiled decode program.
        choose: which branch of a conditional counts, `most` or `least`.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)

    def total(name: str) -> Collectives:
        collectives = Collectives(Counter(), Counter())
        for line in computations[name]:
            if operation := re.search(rf" = (.*?) ({_KINDS})\(", line):
                kind = operation[2]
                collectives += Collectives(Counter({kind: 1}), Counter({kind: _num_bytes(operation[1])}))
            elif branches := re.search(r"branch_computations=\{(.*?)\}", line):
                collectives += choose(*map(total, re.findall(r"%([^\s,]+)", branches[1])))
            elif branches := re.search(r"true_computation=%(\S+), false_computation=%(\S+?),?\s", line + " "):
                collectives += choose(total(branches[1]), total(branches[2]))
            elif call := re.search(r" call\(.*to_apply=%([^\s,]+)", line):
                collectives += total(call[1])
        return collectives

    loops = (re.search(r" while\(.*body=%([^\s,]+)", line) for line in computations[entry])
    (body,) = (loop[1] for loop in loops if loop)  # the token loop is the program's only one
    return total(body)


def _num_bytes(shapes: str) -> int:
    """The size of one array or of a tuple of arrays, from their types as HLO writes them: "f32[8,64]"."""
    total = 0
    for bits, sizes in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", shapes):
        numbers = 1
        for size in filter(None, sizes.split(",")):
            numbers *= int(size)
        total += numbers * max(int(bits or 8) // 8, 1)
    return total


def most(*branches: Collectives) -> Collectives:
    """The branch that sends the most bytes."""
    return max(branches, key=lambda branch: branch.bytes.total())


def least(*branches: Collectives) -> Collectives:
    """The branch that sends the fewest bytes."""
    return min(branches, key=lambda branch: branch.bytes.total())
