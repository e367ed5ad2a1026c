"""The floating-point operations of a compiled program, a loop's body as often as it runs.

XLA's own cost analysis counts the body of a loop once, however many steps it takes; otherwise this
is its count: one for each element that an operation makes, transcendental or not, and two for each
multiply-add of a product. What XLA removed as common, or repeats in several fusions, is counted as
it was compiled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from functional_bp.memory.hlo_text import HloOperation, dims_of, hlo_text

# Moves, names and constants; what devices send each other.
_FREE = frozenset(
    """all-gather all-to-all bitcast bitcast-convert broadcast collective-permute concatenate
    constant convert copy custom-call dynamic-slice dynamic-update-slice gather get-tuple-element
    iota optimization-barrier pad parameter partition-id reshape reverse rng-bit-generator slice
    transpose tuple"""
    .split()
)  # fmt: skip


def compiled_flops(compiled: Any) -> int:
    """Count the operations of what ``jax.jit(f).lower(...).compile()`` returns.

    Of a program for several devices they are those of one.

    Raises:
        ValueError: XLA does not know how often a loop runs.
    """
    text = hlo_text(compiled)

    @cache
    def count(name: str) -> int:
        return sum(_flops(operation, count) for operation in text.computations[name])

    return count(text.entry)


def _flops(operation: HloOperation, count: Callable[[str], int]) -> int:
    opcode, dims, operands = operation.opcode, operation.dims, operation.operands
    size = math.prod(dims)
    if opcode in _FREE:
        return 0
    if opcode == "conditional":
        return max(map(count, operation.branches))
    called = sum(map(count, operation.called))
    if opcode == "while":
        if operation.trips is None:
            raise ValueError("XLA does not know how often a loop of this program runs")
        return operation.trips * called
    if opcode in ("fusion", "call"):
        return called
    if opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
        axes = map(int, filter(None, contracted[1].split(","))) if contracted else ()
        return 2 * size * math.prod(dims_of(operands[0])[axis] for axis in axes)
    if opcode == "convolution":
        numbers = re.search(r"dim_labels=\w+_(\w+)->", operation.attributes)
        assert numbers is not None
        kernel = dims_of(operands[1])
        return 2 * size * math.prod(kernel) // kernel[numbers[1].index("o")]
    if opcode in ("reduce", "scatter"):  # of a scatter the updates, which stand last
        return math.prod(dims_of(operands[0 if opcode == "reduce" else -1])) * max(called, 1)
    if opcode in ("reduce-window", "select-and-scatter"):
        window = re.search(r"window=\{size=([\dx]+)", operation.attributes)
        return size * math.prod(map(int, window[1].split("x"))) if window else size
    if opcode == "sort":
        return size * math.ceil(math.log2(max(*dims, 2)))
    return size
