"""What fills a program's memory: every byte, by what it is for and by where it was made.

The bytes of a program are its arguments, its outputs and its temporaries. Arguments and outputs
exist throughout; of the temporaries, those that are live where most are (the *peak*) are listed,
and what is left of their allocations there is gaps. So the parts add up to XLA's own figure.
"""

from __future__ import annotations

import enum
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
from jax import lax

from functional_bp.memory.allocation import (
    Allocation,
    AllocationKind,
    Buffer,
    CompiledProgram,
    HloInstruction,
)


class Purpose(enum.StrEnum):
    """Bytes are for one of these; in the order of a report."""

    PARAMETERS = "parameters"
    OPTIMIZER = "optimizer state"
    BATCH = "batch"
    STATE = "other state"
    CONSTANTS = "constants"
    GRADIENTS = "gradients"
    OUTPUTS = "outputs"
    KEPT = "kept for the reverse sweep"
    FORWARD = "at work, forward sweep"
    REVERSE = "at work, reverse sweep"
    GAPS = "gaps between buffers"


TEMPORARY = (Purpose.KEPT, Purpose.FORWARD, Purpose.REVERSE, Purpose.GAPS)
OPTIMIZER_SCOPE = "optimizer"  # the name scope in which a training step updates its parameters


@dataclass(frozen=True)
class Provenance:
    """The JAX operation that made a value.

    Attributes:
        scope: the name scopes that it stands in, ``encoder/layer0``; "" at the top.
        operation: the primitive's name.
        source: the person's file and line, None where unknown.
        is_reverse: whether it stands in the reverse sweep.
    """

    scope: str
    operation: str
    source: tuple[str, int] | None
    is_reverse: bool

    @property
    def is_update(self) -> bool:
        """Say whether it belongs to the optimizer's update of the parameters."""
        return OPTIMIZER_SCOPE in self.scope.split("/")


# JAX's words for a transformed scope, and its own scopes around loops, branches and calls.
_TRANSFORMED = re.compile(r"(jvp|transpose|vmap|remat|rematted_computation|linearize)\((.*)\)")
_STRUCTURE = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation",
              "shard_map", "custom_vjp_call", "custom_jvp_call", "eval_jaxpr"}  # fmt: skip


def origin_of(instruction: HloInstruction) -> Provenance:
    """Say which operation an instruction comes from."""
    first = instruction.path.split(";")[0]  # of several that were made one, the first
    return provenance(first, instruction.source, instruction.opcode)


def provenance(path: str, source: tuple[str, int] | None, opcode: str = "") -> Provenance:
    """Read a name stack and operation, ``jit(loss)/transpose(jvp(encoder))/layer0/tanh``."""
    is_reverse = False
    scopes: list[str] = []
    parts = re.split(r"/(?![^(]*\))", path)
    for part in parts[:-1]:
        while (found := _TRANSFORMED.fullmatch(part)) is not None:
            is_reverse |= found[1] == "transpose"
            part = found[2]
        called = re.fullmatch(r"p?jit\((.*)\)", part)
        if called is not None:  # the program itself, and JAX's own small functions, say nothing
            part = "" if part is parts[0] or _is_of_jax(called[1]) else called[1]
        is_own = part in _STRUCTURE or part.startswith("branch_") or "->" in part  # of an einsum
        if part and not is_own:
            scopes.append(part)
    operation = parts[-1] if "(" not in parts[-1] else ""
    return Provenance("/".join(scopes), operation or opcode, source, is_reverse)


def _is_of_jax(name: str) -> bool:
    return name.startswith(("_", "<", "eval_jaxpr")) or any(
        hasattr(m, name) for m in (jnp, jax.nn, lax, jax.random)
    )


@dataclass(frozen=True)
class Share:
    """Some bytes of a program's peak, and what they are.

    Attributes:
        use: what they are for.
        bytes: how many.
        name: the argument's, the output's or the person's, "" for none.
        type: dtype and shape, ``f32[4,3]``.
        origin: what made it; None of arguments, constants and gaps.
        count: how many arrays of that type were made there.
        is_copy: it is a copy of the argument of that name.
    """

    use: Purpose
    bytes: int
    name: str = ""
    type: str = ""
    origin: Provenance | None = None
    count: int = 1
    is_copy: bool = False


@dataclass(frozen=True, eq=False)
class Usage:
    """A program's memory is used for this.

    Attributes:
        program: as XLA allocated it.
        shares: all bytes of ``program.peak_bytes``, largest first; none where the platform does
            not tell what lies in its memory.
    """

    program: CompiledProgram
    shares: tuple[Share, ...]

    @property
    def peak_bytes(self) -> int:
        """Return what the program needs at once."""
        return self.program.peak_bytes

    @property
    def temporary_bytes(self) -> int:
        """Return the bytes of neither arguments nor outputs."""
        return self.program.temporary_bytes

    @cached_property
    def by_use(self) -> dict[Purpose, int]:
        """Return the bytes for each use."""
        sums: dict[Purpose, int] = dict.fromkeys(Purpose, 0)
        for share in self.shares:
            sums[share.use] += share.bytes
        return sums

    @cached_property
    def by_scope(self) -> dict[str, int]:
        """Return the bytes of temporaries and outputs for each name scope, largest first."""
        sums: dict[str, int] = defaultdict(int)
        for share in self.shares:
            if share.origin is not None:
                sums[share.origin.scope] += share.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def peak_origin(self) -> Provenance | None:
        """Return the operation that runs where most temporaries are live.

        Where XLA copies something there, it is the first that reads the copy.
        """
        program = self.program
        copies = [b for b in program.temporaries if b.spans[0][0] == program.peak]
        here, *later = program.instructions[program.peak :] or [None]
        near = [here, *(user for copy in copies for user in copy.users), *later]
        told = (origin_of(i) for i in near if i and i.path and "/while/cond/" not in i.path)
        return next(told, None)


def usage_of(
    program: CompiledProgram,
    use_of_argument: Callable[[str], Purpose],
    use_of_outputs: Purpose = Purpose.OUTPUTS,
    names: Callable[[Provenance, str], str] = lambda origin, type: "",
    constants: Callable[[str], str] = lambda type: "",
) -> Usage:
    """Say what each byte of a program is for.

    Args:
        program: as XLA allocated it.
        use_of_argument: by its name, ``params['W']``.
        use_of_outputs: what the larger outputs are.
        names: finds what the person called a value, by origin and type; "" where it has no name.
        constants: finds the names of arrays that the function closes over, by type.
    """
    shares: list[Share] = []
    for allocation in program.allocations:
        if allocation.kind is AllocationKind.ARGUMENT:
            use = use_of_argument(allocation.argument)
            shares.append(Share(use, allocation.bytes, allocation.argument, allocation.type))
        elif allocation.kind is AllocationKind.CONSTANT:
            type = next((buffer.type for buffer in allocation.buffers), "")
            shares.append(Share(Purpose.CONSTANTS, allocation.bytes, constants(type), type))
        elif allocation.kind is AllocationKind.OUTPUT:
            shares += _filled(allocation, use_of_outputs, names)
    live = program.live_at(program.peak) if program.instructions else []
    for buffer in live:
        origin = origin_of(buffer.origin)
        use, name = _use_of_temporary(buffer, origin), buffer.argument or names(origin, buffer.type)
        is_copy = bool(buffer.argument)
        if is_copy and origin.operation in ("while", "fusion"):
            origin = replace(origin, operation="copy")
        shares.append(Share(use, buffer.bytes, name, buffer.type, origin, is_copy=is_copy))
    if program.allocations:
        told = sum(share.bytes for share in shares)
        shares.append(Share(Purpose.GAPS, max(program.peak_bytes - told, 0)))
    return Usage(program, _merged(shares))


def _filled(
    allocation: Allocation, use: Purpose, names: Callable[[Provenance, str], str]
) -> Iterable[Share]:
    """Name an output's allocation by the last array that lies in it; others lay there before."""
    if not allocation.buffers:
        return [Share(Purpose.OUTPUTS, allocation.bytes)]
    last = max(allocation.buffers, key=lambda b: (b.spans[-1][1], b.bytes))
    origin = origin_of(last.origin)
    if last.type == "tuple" or allocation.bytes < 16:
        use = Purpose.OUTPUTS
    return [Share(use, allocation.bytes, names(origin, last.type), last.type, origin)]


def _use_of_temporary(buffer: Buffer, origin: Provenance) -> Purpose:
    users = [origin_of(user) for user in buffer.users]
    if buffer.argument:
        is_kept = any(user.is_reverse or user.is_update for user in users)
        return Purpose.KEPT if is_kept else Purpose.FORWARD
    if any(user.is_update for user in users) and not origin.is_update:
        return Purpose.GRADIENTS
    if origin.is_reverse:
        return Purpose.REVERSE
    return Purpose.KEPT if any(user.is_reverse for user in users) else Purpose.FORWARD


def _merged(shares: Iterable[Share]) -> tuple[Share, ...]:
    """Join what was made at one place, in one type, for one use; sort by size."""
    groups: dict[tuple[object, ...], list[Share]] = defaultdict(list)
    for share in shares:
        if share.bytes:
            groups[share.use, share.name, share.type, share.origin].append(share)
    joined = (
        replace(one, bytes=sum(s.bytes for s in group), count=len(group))
        for group in groups.values()
        for one in group[:1]
    )
    return tuple(sorted(joined, key=lambda share: -share.bytes))
