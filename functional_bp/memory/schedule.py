"""A schedule: which segments of a graph run again in its reverse sweep, or in pieces."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from jax.extend.core import Jaxpr, Var

from functional_bp.layouts.pieces import Place

Output = tuple[int, int]  # an equation's position in its graph, and which of its outputs


class LoopSchedule(NamedTuple):
    """How a ``scan`` is differentiated with fewer bytes.

    Attributes:
        chunks: into how many its steps are divided, each of which runs again as a whole; then into
            how many each of these is, and so on; none: no chunks.
        groups: of the first division: chunks of as many lengths, the longest first. When they are
            run again, there is room for long ones while few are kept, so that fewer are needed.
        step: how a step is differentiated; None: all that its rules name is kept.
        last: so many of the last steps are not in chunks: when the chunks run again, what these
            kept is gone.
    """

    chunks: tuple[int, ...]
    groups: int
    step: Schedule | None
    last: int = 0


class SumOfPieces(NamedTuple):
    """A scalar is linear in sums over all pieces, or is the only one.

    Attributes:
        sums: the sums.
        output: the scalar.
    """

    sums: tuple[Output, ...]
    output: Output


@dataclass(frozen=True)
class Pieces:
    """A stretch of equations runs piece by piece, and so does its reverse sweep.

    Attributes:
        place: an axis of the dimension that is divided.
        count: into how many pieces.
        total: all that is differentiated goes through it: each piece is reversed as soon as it has
            run, and nothing runs again.
    """

    place: Place
    count: int
    total: SumOfPieces | None = None


class Segment(NamedTuple):
    """A stretch of equations, and what is made again in it.

    Attributes:
        start, stop: the equations.
        kept: of what it makes, what it keeps, the rest being made again; None: it keeps all.
        parts: it runs again in these segments, and keeps nothing until then.
        inside: if it is one equation with graphs of its own, how these are differentiated.
        pieces: it runs in pieces, of which each keeps what is kept.
    """

    start: int
    stop: int
    kept: frozenset[Output] | None = None
    parts: tuple[Segment, ...] = ()
    inside: LoopSchedule | tuple[Schedule, ...] | None = None
    pieces: Pieces | None = None

    def runs_again(self) -> bool:
        """Say whether anything in it does."""
        return self.kept is not None or bool(self.parts) or self.inside is not None


@dataclass(frozen=True)
class Schedule:
    """Segments that follow each other, and what they are estimated to need.

    Attributes:
        segments: all equations, in order.
        bytes: the most that is kept and made again at once.
        flops: that run again.
    """

    segments: tuple[Segment, ...]
    bytes: int = 0
    flops: int = 0


def places(jaxpr: Jaxpr, variables: Collection[Var]) -> frozenset[Output]:
    """Say where in a graph variables are made, which holds for another trace of it too."""
    return frozenset(
        (i, k)
        for i, eqn in enumerate(jaxpr.eqns)
        for k, v in enumerate(eqn.outvars)
        if v in variables
    )
