"""What devices send each other for a token: the collectives in the text of a compiled decode program."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives by kind: how many, and the bytes of their results on one device."""

    count: Counter[str]
    bytes: Counter[str]

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.count + other.count, self.bytes + other.bytes)


def per_token(hlo: str, choose: Callable[..., Sent]) -> Sent:
    """The collectives of one pass through the token loop.

    Args:
        hlo: text of the compiled decode program, of layer_loop "cond".
        choose: `most` or `least` of the branches where the program has several.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if begins := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name:
            computations[name].append(line)

    def total(name: str) -> Sent:
        sent = Sent(Counter(), Counter())
        for line in computations[name]:
            if made := re.search(rf" = (.*?) ({_KINDS})\(", line):
                sent += Sent(Counter({made[2]: 1}), Counter({made[2]: _bytes(made[1])}))
            elif branches := re.search(r"branch_computations=\{(.*?)\}", line):
                sent += choose(*map(total, re.findall(r"%([^\s,]+)", branches[1])))
            elif branches := re.search(r"true_computation=%(\S+), false_computation=%(\S+?),?\s", line + " "):
                sent += choose(total(branches[1]), total(branches[2]))
            elif called := re.search(r" call\(.*to_apply=%([^\s,]+)", line):
                sent += total(called[1])
        return sent

    loops = (re.search(r" while\(.*body=%([^\s,]+)", line) for line in computations[entry])
    (body,) = (loop[1] for loop in loops if loop)
    return total(body)


def _bytes(shapes: str) -> int:
    """Of one shape or a tuple of them, as HLO writes them."""
    total = 0
    for bits, sizes in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", shapes):
        numbers = 1
        for size in filter(None, sizes.split(",")):
            numbers *= int(size)
        total += numbers * max(int(bits or 8) // 8, 1)
    return total


def most(*branches: Sent) -> Sent:
    """The branch that sends the most bytes."""
    return max(branches, key=lambda sent: sent.bytes.total())


def least(*branches: Sent) -> Sent:
    """The branch that sends the fewest bytes."""
    return min(branches, key=lambda sent: sent.bytes.total())
