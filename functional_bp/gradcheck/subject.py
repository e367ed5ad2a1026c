"""A subject is what is checked, in one form whatever a person hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0

from functional_bp.graph.interpret import is_inexact
from functional_bp.graph.names import argument_names

Arrays = tuple[Any, ...]


@dataclass(frozen=True)
class Subject:
    """A subject is a claim about a gradient, over flat tuples of arrays.

    The differentiable leaves of the arguments are ``actives``, in the order of their ``names``;
    the other leaves (integers, booleans, keys) are ``fixed``. Outputs are the differentiable
    leaves of the output, and ``bars`` are their cotangents.

    Attributes:
        name: what a person calls it.
        names: a name for every active leaf (``x``, ``params['W1']``).
        actives, fixed: the given arguments' leaves, in the dtypes they were given in.
        fixed_names: a name for every fixed leaf.
        bar_names: a name for the cotangent of every output; ``y_bar`` and the like where empty.
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
    bar_names: tuple[str, ...] = ()
    traceable: bool = True
    only_here: bool = False
    by_transform: bool = False
    symbolic_zeros: bool = False
    rounding: tuple[float, ...] = ()
    source: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Sample:
    """A sample has the claim beside the truth at one point, in float64, as NumPy arrays."""

    actives: Arrays
    fixed: Arrays
    bars: Arrays
    outs: Arrays
    claimed: Arrays  # one per active leaf
    true: Arrays


@dataclass(frozen=True)
class Disagreement:
    """A disagreement is a gradient that is wrong, with what a diagnosis may look at.

    Attributes:
        subject: the claim.
        argument: the position among the active leaves of the one that is judged.
        given: the sample on which it was found.
        masks: per active leaf, the entries that are wrong.
        residuals: what the forward pass kept, by name (``r``, ``res[0]``, ``res['x_hat']``).
        fresh: draws another sample of the same class of inputs, near the given one.
    """

    subject: Subject
    argument: int
    given: Sample
    masks: Sequence[np.ndarray]
    fresh: Callable[[], Sample]
    residuals: Mapping[str, np.ndarray] = field(default_factory=dict)


# Arrays of a check

UNIT32 = float(np.finfo(np.float32).eps)


def double(x: Any) -> np.ndarray:
    """Return ``x`` in float64, or in complex128 where it is complex."""
    array = np.asarray(x)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def single(x: Any) -> np.ndarray:
    """Return ``x`` in float32, or in complex64 where it is complex."""
    array = np.asarray(x)
    with np.errstate(over="ignore"):
        return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)


def normal(rng: np.random.Generator, like: Any, dtype: Any = None) -> np.ndarray:
    """Draw standard normal numbers of the shape and dtype of ``like``, or in ``dtype``."""
    dtype = np.dtype(dtype or like.dtype)
    drawn = rng.standard_normal(np.shape(like))
    if dtype.kind == "c":
        return (drawn + 1j * rng.standard_normal(np.shape(like))).astype(dtype)
    return drawn.astype(dtype)


def nudged(rng: np.random.Generator, x: np.ndarray, unit: float) -> np.ndarray:
    """Return ``x`` with every entry moved by a few units in the last place, up or down."""
    return (x * (1 + 4 * unit * rng.choice([-1.0, 1.0], np.shape(x)))).astype(x.dtype)


def distance(claimed: Any, true: Any) -> float:
    """Return ‖claimed − true‖ / ‖true‖ over the entries where the true value is finite."""
    a, b = double(claimed).ravel(), double(true).ravel()
    on = np.isfinite(b)
    if not on.any():
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.linalg.norm((a - b)[on]) / (np.linalg.norm(b[on]) + 1e-300))


def farthest(claimed: Sequence[Any], true: Sequence[Any]) -> float:
    """Return the largest distance of all pairs; NaN counts as infinite."""
    found = [distance(a, b) for a, b in zip(claimed, true, strict=True)]
    return max([0.0, *(np.inf if np.isnan(d) else d for d in found)])


def all_finite(arrays: Sequence[Any]) -> bool:
    """Tell whether every entry of every array is finite."""
    return all(bool(np.all(np.isfinite(np.asarray(a)))) for a in arrays)


def pairing(bars: Sequence[Any], values: Sequence[Any]) -> float:
    """Return ⟨ȳ, y⟩ = Σ Re(ȳ y), the pairing under which JAX's cotangents are defined."""
    return float(sum(np.sum(np.real(np.asarray(b) * np.asarray(v))) for b, v in zip(bars, values)))


# Between a person's pytrees and the flat tuples that a check works on


class Flattening:
    """A flattening has a call's leaves: active (judged), fixed (arrays), static (the rest).

    Args:
        fun: the function, for the names of its parameters.
        args: its arguments.
        judged: positions of the arguments whose cotangents are judged; all by default.
        static: positions of arguments that are not arrays (``nondiff_argnums``).
        only: of the judged leaves, the names to judge; all by default.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Sequence[Any],
        judged: Sequence[int] | None = None,
        static: Sequence[int] = (),
        only: Sequence[str] | None = None,
    ) -> None:
        self.args, self.static = tuple(args), tuple(static)
        self.judged = tuple(range(len(args))) if judged is None else tuple(judged)
        kept = tuple(None if i in self.static else a for i, a in enumerate(args))
        self.trees = [jax.tree.structure(a) for a in kept]
        self.tree = jax.tree.structure(kept)
        self.leaves: list[Any] = jax.tree.leaves(kept)
        names = argument_names(fun, kept, {})
        owners = [i for i, tree in enumerate(self.trees) for _ in range(tree.num_leaves)]
        self.active: list[int] = []
        self.fixed: list[int] = []
        for k, leaf in enumerate(self.leaves):
            if not _is_array(leaf):
                continue
            self.leaves[k] = jnp.asarray(leaf)
            on = owners[k] in self.judged and is_inexact(self.leaves[k])
            chosen = on and (only is None or names[k] in only)
            (self.active if chosen else self.fixed).append(k)
        self.owners = owners
        self.all_names = tuple(names)
        self.names = tuple(names[k] for k in self.active)
        self.fixed_names = tuple(names[k] for k in self.fixed)

    @property
    def actives(self) -> Arrays:
        """Return the given active leaves."""
        return tuple(self.leaves[k] for k in self.active)

    @property
    def others(self) -> Arrays:
        """Return the given fixed leaves."""
        return tuple(self.leaves[k] for k in self.fixed)

    def join(self, actives: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, ...]:
        """Return the arguments of the call, with these leaves."""
        leaves = list(self.leaves)
        for k, leaf in (*zip(self.active, actives), *zip(self.fixed, fixed)):
            leaves[k] = leaf
        args = list(jax.tree.unflatten(self.tree, leaves))
        for i in self.static:
            args[i] = self.args[i]
        return tuple(args)

    def outputs_of(self, fun: Callable[..., Any]) -> Callable[[Arrays, Arrays], Arrays]:
        """Return ``fun`` as a function from these leaves to the leaves of its output."""
        return lambda actives, fixed: active_outputs(fun(*self.join(actives, fixed)))

    def subject(self, name: str, **claim: Any) -> Subject:
        """Return the subject of a check that has these leaves."""
        return Subject(
            name,
            self.names,
            self.actives,
            self.others,
            fixed_names=self.fixed_names,
            **claim,
        )

    def cotangents(self, found: Sequence[Any], actives: Sequence[Any]) -> Arrays:
        """Return the active leaves' cotangents, from one pytree per argument that is not static.

        None stands for zero, for an argument or for a leaf of it.

        Raises:
            ValueError: their number or structure is not that of the arguments.
        """
        trees = [(i, t) for i, t in enumerate(self.trees) if i not in self.static]
        if len(found) != len(trees):
            raise ValueError(f"{len(found)} cotangents for {len(trees)} arguments")
        flat: dict[int, Any] = {}
        for (i, tree), bar in zip(trees, found):
            mine = [k for k, owner in enumerate(self.owners) if owner == i]
            leaves = jax.tree.leaves(bar, is_leaf=lambda x: x is None)
            if bar is None:
                leaves = [None] * len(mine)
            if len(leaves) != len(mine):
                raise ValueError(
                    f"the cotangent of argument {i} has the structure {jax.tree.structure(bar)}, "
                    f"the argument {tree}"
                )
            flat.update(zip(mine, leaves))
        return tuple(
            jnp.zeros_like(x) if flat[k] is None else flat[k] for k, x in zip(self.active, actives)
        )


def active_outputs(out: Any) -> Arrays:
    """Return the real and complex leaves of an output."""
    return tuple(jnp.asarray(leaf) for leaf in jax.tree.leaves(out) if is_inexact(leaf))


def output_bars(out: Any, bars: Sequence[Any]) -> Any:
    """Return a pytree like ``out`` with the cotangents ``bars`` in place of its inexact leaves.

    Integer leaves get the cotangents that JAX gives them, zeros of dtype float0.
    """
    leaves, tree = jax.tree.flatten(out)
    remaining = iter(bars)
    filled = [
        next(remaining) if is_inexact(leaf) else np.zeros(np.shape(leaf), float0) for leaf in leaves
    ]
    return jax.tree.unflatten(tree, filled)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic | jax.Array)
