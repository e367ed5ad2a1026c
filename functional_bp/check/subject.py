"""What is checked, in one form whatever a person hands over: value, pullback, reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = tuple[Any, ...]


@dataclass(frozen=True)
class Subject:
    """A claim about a gradient, over flat tuples of arrays.

    The differentiable leaves of the arguments are ``actives``, in the order of their ``names``;
    the other leaves (integers, booleans, keys) are ``fixed``. Outputs are the differentiable
    leaves of the output, and ``bars`` are their cotangents.

    Attributes:
        name: what a person calls it.
        names: a name for every active leaf (``x``, ``params['W1']``).
        actives, fixed: the given arguments' leaves, in the dtypes they were given in.
        fixed_names: a name for every fixed leaf.
        value: ``(actives, fixed) -> outs``, the forward pass as claimed.
        pull: ``(actives, fixed, bars) -> (outs, active bars)``, the claim.
        reference: ``(actives, fixed) -> outs``, to be differentiated; None where there is none.
        reference_pull: ``(actives, fixed, bars) -> (outs, active bars)`` where the true cotangents
            do not come from JAX (PyTorch), or are declared (``expect=``).
        numeric: ``(actives, fixed) -> outs`` for finite differences, outside a JAX trace; None
            where ``value`` or ``reference`` serves.
        residuals: ``(actives, fixed) -> pytree``, what the forward pass keeps; None where unknown.
        backward: ``(residuals, fixed, bars) -> active bars``, the backward pass alone as the
            person wrote it, to be called after ``residuals``; None where it cannot be had apart
            from the forward pass.
        traceable: whether JAX can trace ``pull`` (jit, vmap, second order, other dtypes).
        only_here: the claim holds at the given arguments alone (numbers on paper).
        rounding: per active leaf, how far a claim on paper may be off for being rounded; empty for
            other claims.
        by_transform: ``pull`` is JAX's reverse mode of ``value``, so that wrapping ``value`` (in
            ``jax.checkpoint``) wraps the claim.
        symbolic_zeros: the rule is told which arguments and outputs take part.
        source: the person's function whose lines are meant, for messages.
    """

    name: str
    names: tuple[str, ...]
    actives: Arrays
    fixed: Arrays
    value: Callable[..., Arrays]
    pull: Callable[..., tuple[Arrays, Arrays]]
    reference: Callable[..., Arrays] | None = None
    reference_pull: Callable[..., tuple[Arrays, Arrays]] | None = None
    numeric: Callable[..., Arrays] | None = None
    residuals: Callable[..., Any] | None = None
    backward: Callable[..., Arrays] | None = None
    fixed_names: tuple[str, ...] = ()
    traceable: bool = True
    only_here: bool = False
    by_transform: bool = False
    symbolic_zeros: bool = False
    rounding: tuple[float, ...] = ()
    source: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Sample:
    """The claim beside the truth at one point, in float64 (complex128), as NumPy arrays."""

    actives: Arrays
    fixed: Arrays
    bars: Arrays
    outs: Arrays
    claimed: Arrays  # one per active leaf
    true: Arrays


@dataclass(frozen=True)
class Disagreement:
    """A gradient that is wrong, with what a diagnosis may look at.

    Attributes:
        subject: the claim.
        argument: the position among the active leaves of the one that is judged.
        given: the sample on which it was found.
        masks: per active leaf, the entries that are wrong.
        residuals: what the forward pass kept, by name (``r``, ``res[0]``, ``res['x_hat']``).
        fresh: draws another sample of the same class of inputs, near the given one.
        inputs: the class of inputs ("given", "large", …).
    """

    subject: Subject
    argument: int
    given: Sample
    masks: Sequence[np.ndarray]
    fresh: Callable[[], Sample]
    residuals: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: str = "given"


@dataclass(frozen=True)
class Diagnosis:
    """What a disagreement looks like; the fields are those of ``Finding``."""

    kind: str = "other"
    message: str = ""
    explanations: tuple[str, ...] = ()
    where: Any = None
    repair: Any = None
    also: tuple[str, ...] = ()
