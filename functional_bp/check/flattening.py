"""Between a person's pytrees and the flat tuples that a check works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0

from functional_bp.check.arrays import Arrays, is_inexact
from functional_bp.check.subject import Subject
from functional_bp.graph.names import argument_names


class Flattening:
    """The leaves of the arguments of a call: active (judged), fixed (arrays), static (the rest).

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
        """The given active leaves."""
        return tuple(self.leaves[k] for k in self.active)

    @property
    def others(self) -> Arrays:
        """The given fixed leaves."""
        return tuple(self.leaves[k] for k in self.fixed)

    def join(self, actives: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of the call, with these leaves."""
        leaves = list(self.leaves)
        for k, leaf in (*zip(self.active, actives), *zip(self.fixed, fixed)):
            leaves[k] = leaf
        args = list(jax.tree.unflatten(self.tree, leaves))
        for i in self.static:
            args[i] = self.args[i]
        return tuple(args)

    def subject(self, name: str, **claim: Any) -> Subject:
        """The subject of a check that has these leaves."""
        return Subject(
            name,
            self.names,
            self.actives,
            self.others,
            fixed_names=self.fixed_names,
            **claim,
        )

    def cotangents(self, found: Sequence[Any], actives: Sequence[Any]) -> Arrays:
        """The active leaves' cotangents, from one pytree per argument that is not static.

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
    """The real and complex leaves of an output."""
    return tuple(jnp.asarray(leaf) for leaf in jax.tree.leaves(out) if is_inexact(leaf))


def output_bars(out: Any, bars: Sequence[Any]) -> Any:
    """A pytree like ``out`` with the cotangents ``bars`` in place of its inexact leaves.

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
