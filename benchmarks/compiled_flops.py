"""The floating-point operations of a compiled program, a loop's body as often as it runs.

XLA's own cost analysis counts the body of a loop once, however many steps it takes; otherwise this
is its count: one for each element that an operation makes, transcendental or not, and two for each
multiply-add of a product. What XLA removed as common, or repeats in several fusions, is counted as
it was compiled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

# Moves, names and constants.
_FREE = frozenset(
    """bitcast bitcast-convert broadcast concatenate constant convert copy custom-call
    dynamic-slice dynamic-update-slice gather get-tuple-element iota optimization-barrier pad
    parameter partition-id reshape reverse rng-bit-generator slice transpose tuple"""
    .split()
)  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class _Instruction(NamedTuple):
    opcode: str
    dims: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...]
    rest: str


def compiled_flops(compiled: Any) -> int:
    """Count the operations of what ``jax.jit(f).lower(...).compile()`` returns.

    Raises:
        ValueError: XLA does not know how often a loop runs.
    """
    text = compiled.runtime_executable().hlo_modules()[0].to_string()
    computations = dict(_computations(text))

    @cache
    def count(name: str) -> int:
        return sum(_flops(instruction, count) for instruction in computations[name])

    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    assert entry is not None
    return count(entry[1])


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
    name, found = "", []
    shapes: dict[str, tuple[int, ...]] = {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name, found, shapes = head[1], [], {}
        elif parts := _INSTRUCTION.match(line):
            shapes[parts[1]] = _dims(parts[2])
            inputs = re.findall(r"%([\w.-]+)", parts[4].partition(")")[0])
            operands = tuple(shapes.get(operand, ()) for operand in inputs)
            found.append(_Instruction(parts[3], shapes[parts[1]], operands, parts[4]))
        elif line == "}":
            yield name, found


def _dims(type: str) -> tuple[int, ...]:
    """Read the dimensions of an array's type, of the first array of a tuple's."""
    dims = re.search(r"\[([\d,]*)\]", type)
    return tuple(map(int, filter(None, dims[1].split(",")))) if dims else ()


def _flops(instruction: _Instruction, count: Any) -> int:
    opcode, dims, operands, rest = instruction
    size = math.prod(dims)
    called = sum(map(count, _CALLED.findall(rest)))
    if opcode in _FREE:
        return 0
    if opcode == "while":
        trips = _TRIPS.search(rest)
        if trips is None:
            raise ValueError("XLA does not know how often a loop of this program runs")
        return int(trips[1]) * called
    if opcode == "conditional":
        branches = re.findall(r"[\w.-]+", " ".join(a or b for a, b in _BRANCHES.findall(rest)))
        return max(map(count, branches))
    if opcode in ("fusion", "call"):
        return called
    if opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        axes = map(int, filter(None, contracted[1].split(","))) if contracted else ()
        return 2 * size * math.prod(operands[0][axis] for axis in axes)
    if opcode == "convolution":
        numbers = re.search(r"dim_labels=\w+_(\w+)->", rest)
        assert numbers is not None
        return 2 * size * math.prod(operands[1]) // operands[1][numbers[1].index("o")]
    if opcode in ("reduce", "scatter"):  # of a scatter the updates, which stand last
        return math.prod(operands[0 if opcode == "reduce" else -1]) * max(called, 1)
    if opcode in ("reduce-window", "select-and-scatter"):
        window = re.search(r"window=\{size=([\dx]+)", rest)
        return size * math.prod(map(int, window[1].split("x"))) if window else size
    if opcode == "sort":
        return size * math.ceil(math.log2(max(*dims, 2)))
    return size
