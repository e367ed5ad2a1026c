"""What devices send each other in a step is read off the compiled program.

A device sends so many bytes of an array that takes S bytes where it is whole, over n devices that
do it together, if nobody sends more than he has to (a ring):

==================  ===============
all-reduce          2 (n − 1)/n · S
all-gather          (n − 1)/n · S
reduce-scatter      (n − 1)/n · S
all-to-all          (n − 1)/n · S, of what a device has
collective-permute  S, of what a device has
==================  ===============
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from functional_bp.memory.hlo_text import HloOperation, HloText, bytes_of, hlo_text

# What is sent of the bytes that go in, over n devices.
_SENT = {
    "all-reduce": lambda size, n: 2 * (n - 1) * size / n,
    "all-gather": lambda size, n: (n - 1) * size,
    "reduce-scatter": lambda size, n: (n - 1) * size / n,
    "all-to-all": lambda size, n: (n - 1) * size / n,
    "ragged-all-to-all": lambda size, n: (n - 1) * size / n,
    "collective-broadcast": lambda size, n: size,
    "collective-permute": lambda size, n: size,
}


@dataclass(frozen=True)
class Collective:
    """A collective is an operation that devices do together.

    Attributes:
        kind: XLA's name: "all-reduce", "all-gather", …
        sent_bytes: by a device, each time.
        runs: how often, in one call of the program.
        devices: how many do it together.
        path: the JAX operation that it comes from, with its name stack.
    """

    kind: str
    sent_bytes: int
    runs: int
    devices: int
    path: str


@dataclass(frozen=True)
class Communication:
    """What a device sends in one call of a program: ``collectives``, one after the other."""

    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> int:
        """Return what a device sends, in bytes."""
        return sum(c.sent_bytes * c.runs for c in self.collectives)

    @property
    def by_kind(self) -> Mapping[str, tuple[int, int]]:
        """Return how many collectives of each kind run, and the bytes that a device sends."""
        counts, sent = Counter[str](), Counter[str]()
        for c in self.collectives:
            counts[c.kind] += c.runs
            sent[c.kind] += c.sent_bytes * c.runs
        return {kind: (counts[kind], sent[kind]) for kind, _ in sent.most_common()}


def communication_of(compiled: Any) -> Communication:
    """Read what devices send each other in what ``jax.jit(f).lower(...).compile()`` returns.

    A loop of unknown length counts once.
    """
    return Communication(tuple(_collectives(hlo_text(compiled))))


def _collectives(text: HloText) -> Iterator[Collective]:
    for operation, runs in text.running():
        kind = operation.opcode.removesuffix("-start")
        if kind in _SENT:
            devices = _together(operation, text.devices)
            size = sum(map(bytes_of, operation.operands))
            if devices > 1:
                sent = round(_SENT[kind](size, devices))
                yield Collective(kind, sent, runs, devices, operation.path)


def _together(operation: HloOperation, devices: int) -> int:
    """How many devices are in a group: ``{{0,1},{2,3}}``, ``[2,4]<=[8]``, or all of them."""
    text = operation.attributes
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found[1].count(",") + 1
    return devices
