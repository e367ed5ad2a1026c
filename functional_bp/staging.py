"""Staging: a function at given arguments becomes a jaxpr, with the pytrees around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from functional_bp import _jax
from functional_bp.errors import compose
from functional_bp.rules.references import without_references


class Traced(NamedTuple):
    """A function as a graph at given arguments, with the trees around it."""

    jaxpr: Any
    consts: list[Any]
    leaves: list[Any]
    in_tree: Any
    out_tree: Any
    out_count: int  # outputs before the auxiliary ones
    rebuild_aux: Callable[[Sequence[Any]], Any]


def trace_flat(fun: Callable[..., Any], args: Sequence[Any], has_aux: bool = False) -> Traced:
    """Trace ``fun(*args)``; every leaf of ``args`` is an input of the graph."""
    leaves, in_tree = jax.tree.flatten(tuple(args))
    trees: list[Any] = []

    def flat(*inputs: Any) -> list[Any]:
        out = fun(*jax.tree.unflatten(in_tree, inputs))
        aux: Any = None
        if has_aux:
            if not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    compose(
                        "has_aux=True wants a function that returns a pair (output, auxiliary)",
                        got=f"{type(out).__name__}"
                        + (f" of length {len(out)}" if isinstance(out, tuple | list) else ""),
                    )
                )
            out, aux = out
        out_leaves, out_tree = jax.tree.flatten(out)
        aux_leaves, aux_tree = jax.tree.flatten(aux)
        traced = [isinstance(leaf, Tracer) for leaf in aux_leaves]
        fixed = [None if on else leaf for on, leaf in zip(traced, aux_leaves)]
        trees.extend([out_tree, len(out_leaves), aux_tree, traced, fixed])
        return out_leaves + [leaf for on, leaf in zip(traced, aux_leaves) if on]

    with explaining_tracer_errors():
        closed = jax.make_jaxpr(flat)(*leaves)
    jaxpr, consts = without_references(*_jax.open_jaxpr(closed), leaves)
    out_tree, out_count, aux_tree, traced, fixed = trees

    def rebuild_aux(values: Sequence[Any]) -> Any:
        remaining = iter(values)
        found = [next(remaining) if on else leaf for on, leaf in zip(traced, fixed)]
        return jax.tree.unflatten(aux_tree, found)

    return Traced(jaxpr, consts, leaves, in_tree, out_tree, out_count, rebuild_aux)


class explaining_tracer_errors:
    """Adds to JAX's tracer errors what they mean for a person who called a transform of ours."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(
            error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError
        ):
            error.add_note(
                "functional_bp traces the function to a graph before it differentiates, as jax.jit "
                "does, so Python cannot branch on a differentiated value. Use jax.lax.cond or "
                "jnp.where, or differentiate with respect to fewer arguments (argnums)."
            )
        elif isinstance(error, jax.errors.UnexpectedTracerError):
            error.add_note(
                "A value that was traced in another call is used here: it was stored in a global, "
                "an attribute or a list. Return it from the function instead (has_aux=True)."
            )
