"""A function at given arguments is staged to a pure jaxpr, with the pytrees around it.

Mutable references that the function makes are rewritten to values before anything is
differentiated. A reference is a name for a succession of values; ``without_references`` makes each
of them a value of its own: ``swap`` and ``addupdate`` give a new one, ``get`` reads the newest, a
loop carries it. What is left is a pure graph with ordinary rules. References that live outside the
differentiated function stay: they may be read and written, but no gradient flows through them.
"""

from __future__ import annotations

import contextlib
import gc
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Jaxpr, Primitive, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.plan import is_among
from functional_bp.errors import BackpropError, NotDifferentiableError, compose


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


# Their derivative does not look inside: they may keep references of their own.
_OWN_RULE = {primitives.custom_jvp_call_p, primitives.custom_vjp_call_p}
_WITH_RULES = _OWN_RULE | {_jax.find_primitive("hijax.call_hi_primitive_p")}
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


# Mutable references.

_new_ref_p, _empty_ref_p, _freeze_p, _free_ref_p = (
    _jax.find_primitive(f"core.{name}_p") for name in ("ref", "empty_ref", "freeze", "free_ref")
)


def refuse_references(leaves: Sequence[Any]) -> None:
    """Raise an error where an argument is a mutable reference."""
    for place, leaf in enumerate(leaves):
        if _jax.is_reference(jax.typeof(leaf)):
            raise NotDifferentiableError(
                compose(
                    "a mutable reference is an argument of the differentiated function",
                    got=f"{jax.typeof(leaf)} at place {place} of the flat arguments",
                    expected="arrays",
                    do="pass its value, ref[...], or make the reference inside the function",
                )
            )


def without_references(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> tuple[Jaxpr, list[Any]]:
    """Return the same function of ``args`` as a graph without references that it makes itself.

    Derivation: with r₀, r₁, … the values that a reference takes one after the other,

        new_ref(x): r₀ = x;   get: y = r_k[i];   swap: y = r_k[i], r_k+1 = r_k with v at i;
        addupdate: r_k+1 = r_k with v added at i;   freeze: y = r_k;

    and an operation that holds a graph takes r_k as one more input and returns r_k+1.
    """
    if not _jax.makes_references(jaxpr):
        return jaxpr, list(consts)
    pure = jax.make_jaxpr(lambda *inputs: _run_on_newest(jaxpr, consts, inputs))(*args)
    return _jax.open_jaxpr(pure)


def _run_on_newest(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate with the newest value of every reference in the reference's place."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    ours: set[Any] = set()  # the references' variables
    for eqn in jaxpr.eqns:
        values = [sweeps.value_of(a, env) for a in eqn.invars]
        held = [is_among(a, ours) for a in eqn.invars]
        with _jax.emitting(eqn), eqn.ctx.manager:
            if eqn.primitive is _new_ref_p:
                ours.add(eqn.outvars[0])
                outs: Sequence[Any] = values
            elif eqn.primitive is _empty_ref_p:
                ours.add(eqn.outvars[0])
                made: Any = eqn.outvars[0].aval
                inner = made.inner_aval
                outs = [lax.full(inner.shape, 0, inner.dtype)]
            elif any(held) and eqn.primitive in (_freeze_p, _free_ref_p):
                outs = values if eqn.primitive is _freeze_p else []
            elif any(held) or (_jax.makes_references(eqn) and eqn.primitive not in _OWN_RULE):
                newest, outs = _jax.discharge(eqn, held, values)
                for atom, on, value in zip(eqn.invars, held, newest, strict=True):
                    if on and value is not None:
                        env[atom] = value
            else:
                outs = sweeps.evaluate(eqn, values)
        env.update(zip(eqn.outvars, outs))
    return [sweeps.value_of(v, env) for v in jaxpr.outvars]
