"""A compiled program is read from XLA's text of it, with how often each operation runs.

XLA knows how many steps a loop takes where JAX's ``scan`` and ``fori_loop`` made it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")


@dataclass(frozen=True)
class HloOperation:
    """An operation of a compiled program, on one device.

    Attributes:
        opcode: XLA's: "dot", "all-reduce", "while", …
        type: of what it returns, as XLA writes it: ``f32[4,3]{1,0}``.
        operands: the types of what it takes.
        attributes: the rest of its line.
    """

    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Return the dimensions of the first array that it returns."""
        return dims_of(self.type)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Name the computations that it calls; a loop's body and condition."""
        return tuple(_CALLED.findall(self.attributes))

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """Name the computations of which it calls one."""
        texts = (a or b for a, b in _BRANCHES.findall(self.attributes))
        return tuple(re.findall(r"[\w.-]+", " ".join(texts)))

    @cached_property
    def trips(self) -> int | None:
        """Return how many steps a loop takes; None where XLA does not know."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None

    @cached_property
    def path(self) -> str:
        """Return JAX's name stack and operation: ``jit(loss)/encoder/dot_general``."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Running(NamedTuple):
    """An operation, and how often it runs in one call."""

    operation: HloOperation
    runs: int


@dataclass(frozen=True, eq=False)
class HloText:
    """The computations of a compiled program by name, and which is its entry.

    Attributes:
        entry: the name of the computation that runs.
        computations: the operations of each.
        devices: over how many it is partitioned.
    """

    entry: str
    computations: Mapping[str, tuple[HloOperation, ...]]
    devices: int

    def running(self, computation: str | None = None, runs: int = 1) -> Iterator[Running]:
        """Go through all operations that run, loops of unknown length once, all branches once."""
        for operation in self.computations[computation or self.entry]:
            yield Running(operation, runs)
            inner = runs * (operation.trips or 1)
            if operation.opcode in ("while", "call", "fusion", "conditional", "async-start"):
                for name in (*operation.called, *operation.branches):
                    yield from self.running(name, inner)


def hlo_text(compiled: Any) -> HloText:
    """Read what ``jax.jit(f).lower(...).compile()`` returns."""
    text = compiled.runtime_executable().hlo_modules()[0].to_string()
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    assert entry is not None
    return HloText(entry[1], dict(_computations(text)), int(devices[1]) if devices else 1)


def _computations(text: str) -> Iterator[tuple[str, tuple[HloOperation, ...]]]:
    name, found = "", []
    types: dict[str, str] = {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name, found, types = head[1], [], {}
        elif parts := _INSTRUCTION.match(line):
            types[parts[1]] = parts[2]
            inputs = re.findall(r"%([\w.-]+)", parts[4].partition(")")[0])
            operands = tuple(types.get(operand, "") for operand in inputs)
            found.append(HloOperation(parts[3], parts[2], operands, parts[4]))
        elif line == "}":
            yield name, tuple(found)


def dims_of(type: str) -> tuple[int, ...]:
    """Read the dimensions of an array's type, of the first array of a tuple's."""
    found = _ARRAY.search(type)
    return tuple(map(int, filter(None, found[3].split(",")))) if found else ()


def bytes_of(type: str) -> int:
    """Count the bytes of an array's type, or of all arrays of a tuple's.

    >>> bytes_of("f32[4,3]{1,0}"), bytes_of("(bf16[8]{0}, pred[2])"), bytes_of("c64[]")
    (48, 18, 8)
    """
    return sum(
        math.prod(map(int, filter(None, dims.split(",")))) * max(int(bits or 8), 8) // 8
        for _, bits, dims in _ARRAY.findall(type)
    )
