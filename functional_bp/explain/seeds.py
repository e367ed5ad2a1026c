"""What the reverse sweep starts from: a cotangent for each output, 1 for a real scalar."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import CotangentError, NotDifferentiableError, compose, describe
from functional_bp.graph.view import Graph
from functional_bp.structure import has_tangent


def seeds_of(graph: Graph, cotangent: Any = None, do: str = "") -> list[Any]:
    """One cotangent per output, None for none.

    Args:
        graph: whose outputs are meant.
        cotangent: like the function's output, with None where nothing is differentiated; by
            default 1, for which the only output must be a real scalar.
        do: what a person may do whose output is no real scalar.

    Raises:
        NotDifferentiableError: the output is no real scalar, and there is no ``cotangent``.
        CotangentError: ``cotangent`` does not fit the output.
    """
    outs = graph.outputs
    if cotangent is None:
        if len(outs) != 1 or outs[0].shape != () or not _is_real(outs[0].dtype):
            raise NotDifferentiableError(
                compose(
                    f"{graph.name} has no single gradient to explain",
                    got="the output " + (", ".join(v.type for v in outs) or "()"),
                    expected="a real scalar",
                    do=do,
                )
            )
        return [jnp.ones((), outs[0].dtype)]
    bars = jax.tree.leaves(cotangent, is_leaf=lambda x: x is None)
    if len(bars) != len(outs) or not all(map(_fits, bars, outs)):
        raise CotangentError(
            compose(
                f"the cotangent does not fit the output of {graph.name}",
                got=", ".join("None" if bar is None else describe(bar) for bar in bars) or "()",
                expected=", ".join(v.type for v in outs),
            )
        )
    return [
        jnp.asarray(bar, v.dtype) if bar is not None and has_tangent(v.aval) else None
        for bar, v in zip(bars, outs)
    ]


def _is_real(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, np.floating)


def _fits(bar: Any, output: Any) -> bool:
    """Whether it has the output's shape, and is real where the output is."""
    if bar is None:
        return True
    return np.shape(bar) == output.shape and not (_is_real(output.dtype) and np.iscomplexobj(bar))
