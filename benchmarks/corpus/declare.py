"""What a family declares: operations, how their arguments are drawn, and their faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from functional_bp.gradcheck.findings import Kind

Draw = Callable[[np.random.Generator], tuple[Any, ...]]

# Kinds that no single call at first order shows.
OF_CALLS = ("hidden state", "not deterministic", "jit", "vmap", "scan", "remat", "sharding")
# Kinds that exact arithmetic does not show.
OF_ROUNDING = ("precision",)
# Kinds that raise, or would if JAX looked closer.
OF_FORM = ("structure", "error", "dtype")


@dataclass(frozen=True)
class Fault:
    """A fault as edits of the right source.

    Attributes:
        kinds: the kinds that name it rightly, the best first.
        arguments: the arguments whose cotangent is wrong.
        edits: pairs of old and new text; an old text stands exactly once in the operation's
            functions other than the primal.
        order: 2 where the first derivative is right.
        elsewhere: draws inputs at which the fault shows; None where it shows at the given ones.
        needs_reference: whether finite differences of the forward pass cannot tell.
    """

    kinds: tuple[str, ...]
    arguments: tuple[str, ...]
    edits: tuple[tuple[str, str], ...]
    order: int = 1
    elsewhere: Draw | None = None
    needs_reference: bool = False

    @property
    def kind(self) -> str:
        """The kind that names it best."""
        return self.kinds[0]

    @property
    def off_inputs(self) -> bool:
        """Whether the gradient is right at the inputs that are given."""
        return self.elsewhere is not None

    @property
    def shows(self) -> str:
        """Where the fault can be seen: the group that the tables are divided by."""
        if self.kind in OF_CALLS:
            return "calls"
        if self.kind in OF_FORM:
            return "form"
        if self.kind in OF_ROUNDING:
            return "rounding"
        if self.order == 2:
            return "second order"
        return "elsewhere" if self.off_inputs else "given inputs"


@dataclass(frozen=True, eq=False)
class Operation:
    """A function with a right hand-derived gradient.

    Attributes:
        name: of the function, in the module ``module``.
        module: the dotted name of the family's module.
        draw: draws the given arguments, NumPy arrays in float32 unless the case says otherwise.
        faults: what can be wrong with it.
        also: further inputs on which it is right, by a word that says what is hard about them.
        hard: whether the given inputs count as hard.
        reference: name of the function to be differentiated; the undecorated primal if None.
        options: keywords for our check: ``expect``, where the gradient is false on purpose.
        kink: whether the given inputs stand on kinks, where the convention may differ from JAX's.
        tolerance: relative to the largest entry, how far an iteration may be from the truth.
    """

    name: str
    module: str
    draw: Draw
    faults: tuple[Fault, ...] = ()
    also: Mapping[str, Draw] = field(default_factory=dict)
    hard: bool = False
    reference: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    kink: bool = False
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Case:
    """One question to a checker: this operation with this fault, or right on these inputs."""

    name: str
    operation: Operation
    fault: Fault | None = None
    inputs: str = ""  # a key of ``operation.also``; "" for the given inputs

    @property
    def hard(self) -> bool:
        """Whether it is a right one that counts as hard."""
        return self.fault is None and (self.operation.hard or bool(self.inputs))

    @property
    def kink(self) -> bool:
        """Whether its inputs stand on kinks, where another convention than JAX's is right too."""
        return self.operation.kink or "convention" in self.inputs

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Draw the arguments."""
        draw = self.operation.also[self.inputs] if self.inputs else self.operation.draw
        return draw(np.random.default_rng(seed))


def operation(function: Any, draw: Draw, *faults: Fault, **properties: Any) -> Operation:
    """Declare an operation; ``properties`` are the further fields of ``Operation``."""
    primal = getattr(function, "fun", function)
    return Operation(primal.__name__, primal.__module__, draw, faults, **properties)


def fault(
    kind: str | tuple[str, ...],
    arguments: str | tuple[str, ...],
    old: str,
    new: str,
    *more: tuple[str, str],
    order: int = 1,
    elsewhere: Draw | None = None,
    needs_reference: bool = False,
) -> Fault:
    """Declare a fault: its kind, whose cotangent it spoils, and the edit that makes it.

    Raises:
        ValueError: if a kind is none of ``Kind``.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    if unknown := [name for name in kinds if name not in set(Kind)]:
        raise ValueError(f"fault kind {unknown[0]!r}: expected one of {', '.join(Kind)}")
    named = (arguments,) if isinstance(arguments, str) else arguments
    return Fault(kinds, named, ((old, new), *more), order, elsewhere, needs_reference)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normally distributed, in float32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    """Uniform in [low, high), in float32."""
    return rng.uniform(low, high, shape).astype(np.float32)


def integers(rng: np.random.Generator, high: int, *shape: int) -> np.ndarray:
    """Uniform in 0 … high − 1, in int32."""
    return rng.integers(0, high, shape).astype(np.int32)


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normally distributed real and imaginary parts, in complex64."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def definite(rng: np.random.Generator, size: int) -> np.ndarray:
    """A symmetric positive definite matrix, well conditioned, in float32."""
    root = rng.standard_normal((size, size))
    return (root @ root.T / size + np.eye(size)).astype(np.float32)
