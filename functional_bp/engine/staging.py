"""A function at given arguments is staged to a jaxpr, with the pytrees around it."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Primitive, primitives

from functional_bp import _jax
from functional_bp.engine.discharge import refuse_references, without_references
from functional_bp.errors import BackpropError, compose


class Flat:
    """A flat function takes and returns lists of arrays for one of pytrees; calling it fills in the
    rest.

    Attributes:
        leaves: its arguments' leaves.
        in_tree: the tree of its arguments.
        out_tree: the tree of its output.
        out_count: how many outputs come before the auxiliary ones.
    """

    out_tree: Any
    out_count: int

    def __init__(self, fun: Callable[..., Any], args: Sequence[Any], has_aux: bool = False) -> None:
        self.fun, self.has_aux = fun, has_aux
        self.leaves, self.in_tree = jax.tree.flatten(tuple(args))
        refuse_references(self.leaves)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Return the leaves of the output, then those of the auxiliary that are tracers."""
        out = self.fun(*jax.tree.unflatten(self.in_tree, inputs))
        aux: Any = None
        if self.has_aux:
            if not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    compose(
                        "has_aux=True wants a function that returns a pair (output, auxiliary)",
                        got=f"{type(out).__name__}"
                        + (f" of length {len(out)}" if isinstance(out, tuple | list) else ""),
                    )
                )
            out, aux = out
        leaves, self.out_tree = jax.tree.flatten(out)
        aux_leaves, self._aux_tree = jax.tree.flatten(aux)
        self._fixed = [_TRACED if isinstance(x, Tracer) else x for x in aux_leaves]
        self.out_count = len(leaves)
        return leaves + [x for x in aux_leaves if isinstance(x, Tracer)]

    def output(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """Rebuild the output and the auxiliary from the values of what the call returned."""
        rest = iter(values[self.out_count :])
        aux = [next(rest) if x is _TRACED else x for x in self._fixed]
        out = jax.tree.unflatten(self.out_tree, values[: self.out_count])
        return out, jax.tree.unflatten(self._aux_tree, aux)


_TRACED = object()


def stage_pure(flat: Flat) -> tuple[Jaxpr, list[Any], bool]:
    """Stage a function at its arguments by ``stage``; references that it makes are rewritten."""
    with explaining(is_staged=True):
        jaxpr, consts, is_whole = stage(flat, flat.leaves)
    return *without_references(jaxpr, consts, flat.leaves), is_whole


def stage(flat: Callable[..., list[Any]], leaves: Sequence[Any]) -> tuple[Jaxpr, list[Any], bool]:
    """Return the graph of a flat function, its constants, and whether the graph is whole.

    It is not whole where the rule of a function that was made inside (``jax.custom_vjp``) closes
    over a value that was computed inside: the value is none any more once tracing has ended.
    """
    traces: list[weakref.ref[Any]] = []

    def run(*inputs: Any) -> list[Any]:
        traces.append(weakref.ref(_jax.current_trace()))
        return flat(*inputs)

    jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(run)(*leaves))
    trace = traces[0]()  # gone, unless a rule (or somebody) holds it
    return jaxpr, consts, trace is None or not _closes_over(jaxpr, trace)


def _closes_over(graph: Any, trace: Any) -> bool:
    """Say whether a Python function that an operation carries holds a value of the trace."""
    for eqn in _jax.open_jaxpr(graph)[0].eqns:
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if isinstance(part, Jaxpr | _jax.ClosedJaxpr):
                    if _closes_over(part, trace):
                        return True
        if eqn.primitive in _WITH_RULES and _reaches(list(eqn.params.values()), trace):
            return True
    return False


_WITH_RULES = {
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
    _jax.find_primitive("hijax.call_hi_primitive_p"),
}
_OPAQUE = (  # hold no tracer, or too much
    str, bytes, int, float, complex, type, types.ModuleType, types.CodeType, types.FrameType,
    np.ndarray, jax.Array, Jaxpr, _jax.ClosedJaxpr, Primitive, _jax.Trace,
)  # fmt: skip
_FARTHEST = 10_000  # objects that are looked at


def _reaches(roots: Sequence[Any], trace: Any) -> bool:
    """Say whether a tracer of the trace can be reached through the objects' attributes."""
    ahead, seen = list(roots), set(map(id, roots))
    while ahead and len(seen) < _FARTHEST:
        here = ahead.pop()
        if isinstance(here, Tracer):
            if here._trace is trace:
                return True
            continue
        if isinstance(here, types.FunctionType):  # not its module's globals
            parts = [here.__closure__, here.__defaults__, here.__kwdefaults__, here.__dict__]
        else:
            parts = gc.get_referents(here)
        fresh = [x for x in parts if id(x) not in seen and not _is_opaque(x)]
        seen.update(map(id, fresh))
        ahead += fresh
    return False


def _is_opaque(x: Any) -> bool:
    return x is None or (isinstance(x, _OPAQUE) and not isinstance(x, Tracer))


@contextlib.contextmanager
def explaining(is_staged: bool) -> Iterator[None]:
    """Add to JAX's tracer errors what they mean for a person who called a transform of ours."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        if is_staged:
            error.add_note(
                "Inside jax.jit (or with staged=True), functional_bp traces the function to a "
                "graph before it differentiates, so Python cannot look at a differentiated value. "
                "Use jax.lax.cond or jnp.where, differentiate with respect to fewer arguments "
                "(argnums), or call it outside of jax.jit."
            )
        elif isinstance(error, jax.errors.TracerArrayConversionError):
            error.add_note(
                "NumPy was given a value that depends on a differentiated argument; its gradient "
                "would be lost. Use jax.numpy, or jax.lax.stop_gradient(value) where no gradient "
                "is wanted."
            )
        raise
    except jax.errors.UnexpectedTracerError as error:
        if not isinstance(error, BackpropError):
            error.add_note(
                "A value of another call, which has ended, is used here: it was stored in a "
                "global, an attribute or a list. Return it from that function instead "
                "(has_aux=True)."
            )
        raise
