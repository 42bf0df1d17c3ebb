"""What one token costs on a device: kernels, copies, sorts and conditionals of a compiled decode program.

The program's text is HLO, as `jax.stages.Compiled.as_text` returns it. Its only loop is the one over tokens. Each
instruction of the loop that computes something is one kernel. Exits are conditionals inside one another: the true
branch propagates state to the layers that are left, the false branch runs the next group of layers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_NO_KERNEL = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "partition-id",
    "replica-id", "add-dependency",
}  # fmt: skip
_HOST = {"infeed", "outfeed", "send", "recv"}
_MOVES = {"copy", "transpose", "concatenate"}
_PREFETCHES = {"copy-start", "slice-start"}
_SCOPES = {"layer": "layers", "question": "questions", "prune": "pass at p", "propagate": "exit"}
_SCOPES |= {"read_final": "final reading", "cache": "cache"}
PARTS = (*_SCOPES.values(), "rest")
"""The parts of a token. "rest" has the biases and masks, and what is written down of each token."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
        opcode: such as "fusion".
        shape: of the result, as HLO writes it: "f32[8,64]".
        computations: names of the computations that it calls. Of a conditional: what runs if false, then if true.
        scope: where in the source it comes from: names of functions and of `jax.named_scope`, outermost first.
        target: of a custom call, its name; else empty.
        is_root: whether it is the result of its computation.
    """

    opcode: str
    shape: str
    computations: tuple[str, ...]
    scope: str
    target: str
    is_root: bool


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """The computations of a compiled program by name, and those of the token loop: its condition and its body."""

    computations: dict[str, list[Instruction]]
    loop: tuple[str, ...]


@dataclasses.dataclass
class TokenCounts:
    """What one token takes, of a batch whose rows all exit at the same depth.

    Attributes:
        kernels: by part, the keys of `PARTS`.
        layers: kernels by depth.
        questions: kernels by depth.
        copies: bytes of each array that is copied or transposed.
        prefetches: how many arrays, or parts of them, a TPU brings to its fast memory while it computes.
        sorts: how many values each sort sorts at once.
        conditionals: how many are passed.
        collectives: how many results are sent between devices.
        callbacks: how often the program calls the host.
    """

    kernels: Counter[str] = dataclasses.field(default_factory=Counter)
    layers: Counter[int] = dataclasses.field(default_factory=Counter)
    questions: Counter[int] = dataclasses.field(default_factory=Counter)
    copies: list[int] = dataclasses.field(default_factory=list)
    sorts: list[int] = dataclasses.field(default_factory=list)
    prefetches: int = 0
    conditionals: int = 0
    collectives: int = 0
    callbacks: int = 0


def parse(hlo: str) -> HloProgram:
    """Reads the text of a compiled decode program.

    Raises:
        ValueError: the program does not have exactly one loop.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = name = ""
    loops = []
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name and (instruction := _instruction(line)):
            computations[name].append(instruction)
            if instruction.opcode == "while" and name == entry:
                loops.append((*re.findall(r"(?:condition|body)=%([^\s,]+)", line),))
    if len(loops) != 1:
        raise ValueError(f"the program has {len(loops)} loops; allowed: one, over tokens")
    return HloProgram(computations, loops[0])


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%\S+ = (\(.*?\)|\S+) ([\w-]+)\(", line)
    if match is None:
        return None
    if branches := re.search(r"true_computation=%([^\s,]+), false_computation=%([^\s,]+)", line):
        called = (branches[2], branches[1])
    elif branches := re.search(r"branch_computations=\{(.*?)\}", line):
        called = tuple(re.findall(r"%([^\s,]+)", branches[1]))
    else:
        called = tuple(re.findall(r"(?:calls|to_apply|body)=%([^\s,]+)", line))
    scope, target = re.search(r'op_name="([^"]*)"', line), re.search(r'custom_call_target="([^"]*)"', line)
    return Instruction(
        match[3], match[2], called, scope[1] if scope else "", target[1] if target else "", bool(match[1])
    )


def count_token(
    program: HloProgram, exit_depth: int, group_starts: Sequence[int], prune_depth: int = 0
) -> TokenCounts:
    """Counts what one token takes that exits at a depth.

    Args:
        program: from `parse`.
        exit_depth: e, a depth at which a token may exit, or the last one.
        group_starts: the first depth of each group of layers after the first exit, as
            `dvp_jax.decode.layer_loop.grouped` makes them.
        prune_depth: p of "dvp". What is asked there belongs to the pass at p. 0: nothing is pruned.
    """
    counts = TokenCounts()

    def walk(name: str, num_groups: int) -> None:
        """Counts a computation in which the next group to run is group_starts[num_groups]."""
        for instruction in program.computations[name]:
            opcode, part, depth = instruction.opcode, *_part(instruction.scope)
            if opcode == "conditional":
                counts.conditionals += 1
                if part == "questions":  # calm with a measure of the hidden state: read the row that exits
                    exits = depth == exit_depth
                    walk(instruction.computations[exits], num_groups)
                else:
                    exits = exit_depth < group_starts[num_groups]
                    walk(instruction.computations[exits], num_groups + 1)
            elif opcode in ("call", "while"):
                walk(instruction.computations[-1], num_groups)
            elif opcode in _PREFETCHES:
                counts.prefetches += 1
            elif opcode not in _NO_KERNEL and not opcode.endswith("-done"):
                if part == "questions" and depth == prune_depth:
                    part = "pass at p"
                counts.kernels[part] += 1
                if part == "layers":
                    counts.layers[depth] += 1
                elif part == "questions":
                    counts.questions[depth] += 1
                _count_kinds(counts, program, instruction)

    for name in program.loop:
        walk(name, 0)
    return counts


def _part(scope: str) -> tuple[str, int]:
    """The part of a token that a scope belongs to, and the depth; 0 where there is none."""
    for name in reversed(scope.split("/")):
        match = re.fullmatch(r"(layer|question|prune)_(\d+)|(propagate|read_final|cache)", name)
        if match:
            return _SCOPES[match[1] or match[3]], int(match[2] or 0)
    return "rest", 0


def _count_kinds(counts: TokenCounts, program: HloProgram, instruction: Instruction) -> None:
    inside = list(_inside(program, instruction))
    opcodes = {inner.opcode for inner in inside} - _NO_KERNEL
    if opcodes and opcodes <= _MOVES:
        counts.copies.append(_num_bytes(instruction.shape))
    for inner in inside:
        if inner.opcode == "sort":
            counts.sorts.append(max(_sizes(inner.shape)))
        elif inner.opcode in _HOST or "callback" in inner.target:
            counts.callbacks += 1
        elif re.match("all-|reduce-scatter|collective-", inner.opcode):
            counts.collectives += 1


def _inside(program: HloProgram, instruction: Instruction) -> Iterator[Instruction]:
    """What a kernel computes: the instructions of a fusion, or the one instruction itself."""
    if instruction.opcode == "fusion":
        for name in instruction.computations:
            for inner in program.computations[name]:
                yield from _inside(program, inner)
    else:
        yield instruction


def _sizes(shape: str) -> list[int]:
    """The last dimensions of an array or of each array of a tuple."""
    return [int(sizes.split(",")[-1]) for sizes in re.findall(r"\[([\d,]+)\]", shape)]


def _num_bytes(shape: str) -> int:
    """Bytes of an array, or of the first one of a tuple."""
    match = re.search(r"[a-z]+(\d*)\w*\[([\d,]*)\]", shape)
    assert match is not None
    return math.prod(int(size) for size in match[2].split(",") if size) * max(int(match[1] or 8) // 8, 1)
