"""The transforms: JAX's signatures, our sweeps.

Each traces the function once (``jax.make_jaxpr``), plans, and runs the sweeps on values that may
be tracers; so all of them work inside and outside ``jit``, ``vmap``, ``scan`` and each other.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.extend.core import Literal

from functional_bp import _jax, backprop
from functional_bp.errors import CotangentError, NotDifferentiableError, compose, describe
from functional_bp.plan import Mask, Options, Plan, has_tangent, make_plan


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
        traced = [isinstance(leaf, jax.core.Tracer) for leaf in aux_leaves]
        fixed = [None if on else leaf for on, leaf in zip(traced, aux_leaves)]
        trees.extend([out_tree, len(out_leaves), aux_tree, traced, fixed])
        return out_leaves + [leaf for on, leaf in zip(traced, aux_leaves) if on]

    with _explaining_tracer_errors():
        closed = jax.make_jaxpr(flat)(*leaves)
    jaxpr, consts = _jax.open_jaxpr(closed)
    out_tree, out_count, aux_tree, traced, fixed = trees

    def rebuild_aux(values: Sequence[Any]) -> Any:
        remaining = iter(values)
        found = [next(remaining) if on else leaf for on, leaf in zip(traced, fixed)]
        return jax.tree.unflatten(aux_tree, found)

    return Traced(jaxpr, consts, leaves, in_tree, out_tree, out_count, rebuild_aux)


class _explaining_tracer_errors:
    """Adds to JAX's tracer errors what they mean for a person who called a transform of ours."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
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


class _Static(NamedTuple):
    plan: Plan
    in_tree: Any
    out_tree: Any
    out_avals: tuple[Any, ...]
    in_avals: tuple[Any, ...]
    name: str


class _Box:
    """Holds what a pytree must not compare: equal only to itself."""

    def __init__(self, value: Any) -> None:
        self.value = value


@jax.tree_util.register_pytree_node_class
class PullbackFunction:
    """What ``vjp`` returns: cotangents of the output to cotangents of the inputs. A pytree."""

    def __init__(self, consts: list[Any], residuals: Any, box: _Box) -> None:
        self.consts, self.residuals, self._box = consts, residuals, box

    def tree_flatten(self) -> tuple[Any, _Box]:
        """The kept arrays, and the plan that goes with them."""
        return (self.consts, self.residuals), self._box

    @classmethod
    def tree_unflatten(cls, box: _Box, children: Any) -> PullbackFunction:
        """The inverse of ``tree_flatten``."""
        return cls(*children, box)

    def __call__(self, cotangent: Any) -> tuple[Any, ...]:
        """x̄ = Jᵀ ȳ for every input.

        Raises:
            CotangentError: its structure, a shape or a dtype is not that of the output.
        """
        static: _Static = self._box.value
        bars = _check_cotangent(cotangent, static)
        found = backprop.reverse(static.plan, self.consts, self.residuals, bars)
        return jax.tree.unflatten(static.in_tree, [
            _as_cotangent(bar, aval) for bar, aval in zip(found, static.in_avals)
        ])  # fmt: skip


def _check_cotangent(cotangent: Any, static: _Static) -> list[Any]:
    leaves, tree = jax.tree.flatten(cotangent)
    if tree != static.out_tree:
        raise CotangentError(
            compose(
                f"the cotangent given to the pullback of {static.name} has the wrong structure",
                got=str(tree),
                expected=f"{static.out_tree}, as the function's output",
            )
        )
    for i, (leaf, aval) in enumerate(zip(leaves, static.out_avals)):
        expected = aval.to_tangent_aval()
        got = leaf if getattr(leaf, "dtype", None) == dtypes.float0 else jax.typeof(leaf)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise CotangentError(
                compose(
                    f"the cotangent of output {i} of {static.name} has the wrong shape or dtype",
                    got=describe(got),
                    expected=f"{describe(expected)}, because the output is {describe(aval)}",
                )
            )
    return [
        jnp.asarray(leaf) if has_tangent(aval) else None
        for leaf, aval in zip(leaves, static.out_avals)
    ]


def _as_cotangent(bar: Any, aval: Any) -> Any:
    if not has_tangent(aval):
        return np.zeros(getattr(aval, "shape", ()), dtypes.float0)
    return backprop.zeros(aval) if bar is None else bar


def vjp(
    fun: Callable[..., Any],
    *primals: Any,
    has_aux: bool = False,
    strict: bool = False,
    max_steps: int | None = None,
) -> Any:
    """Output and pullback: y = f(x), and ȳ ↦ Jᵀ ȳ; as ``jax.vjp``.

    Args:
        fun: takes and returns pytrees of arrays.
        primals: the point x.
        has_aux: ``fun`` returns ``(output, auxiliary)``; the auxiliary is passed on.
        strict: refuse an operation whose rule is not ours but its author's.
        max_steps: the bound of loops whose trip count is not known before they run.

    Returns:
        ``(output, pullback)``, or ``(output, pullback, auxiliary)``.
    """
    wanted = tuple(has_tangent(jax.typeof(x)) for x in jax.tree.leaves(primals))
    out, pullback, aux = _vjp(fun, primals, wanted, has_aux, Options(strict, max_steps))
    return (out, pullback, aux) if has_aux else (out, pullback)


def _vjp(
    fun: Callable[..., Any], primals: Any, wanted: Mask, has_aux: bool, options: Options
) -> tuple[Any, PullbackFunction, Any]:
    traced = trace_flat(fun, primals, has_aux)
    jaxpr = traced.jaxpr
    seeded = tuple(
        i < traced.out_count and has_tangent(v.aval) for i, v in enumerate(jaxpr.outvars)
    )
    plan = make_plan(jaxpr, wanted, seeded, (True,) * len(seeded), options)
    outs, residuals = backprop.forward(plan, traced.consts, [jnp.asarray(x) if isinstance(x, bool | int | float | complex | np.ndarray | np.generic) else x for x in traced.leaves])
    outs = [jnp.asarray(out, v.aval.dtype) if isinstance(v, Literal) else out for out, v in zip(outs, jaxpr.outvars)]
    avals = tuple(v.aval for v in jaxpr.outvars[: traced.out_count])
    name = getattr(fun, "__name__", type(fun).__name__)
    static = _Static(plan, traced.in_tree, traced.out_tree, avals, tuple(v.aval for v in jaxpr.invars), name)
    out = jax.tree.unflatten(traced.out_tree, outs[: traced.out_count])
    aux = traced.rebuild_aux(outs[traced.out_count :])
    return out, PullbackFunction(traced.consts, residuals, _Box(static)), aux


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    strict: bool = False,
    max_steps: int | None = None,
) -> Callable[..., Any]:
    """A function that returns ``(f(x), ∇f(x))``; as ``jax.value_and_grad``."""
    options = Options(strict, max_steps)

    @functools.wraps(fun)
    def value_and_grad_fun(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        partial, chosen = _choose(fun, argnums, args, kwargs)
        wanted = _check_inputs("grad", chosen, holomorphic, allow_int)
        value, pullback, aux = _vjp(partial, chosen, wanted, has_aux, options)
        _check_scalar(fun, value, holomorphic)
        (seed,) = [jnp.ones((), jax.typeof(leaf).dtype) for leaf in jax.tree.leaves(value)]
        grads = pullback(jax.tree.unflatten(jax.tree.structure(value), [seed]))
        grads = grads[0] if isinstance(argnums, int) else grads
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_fun


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    strict: bool = False,
    max_steps: int | None = None,
) -> Callable[..., Any]:
    """A function that returns ∇f(x); as ``jax.grad``."""
    both = value_and_grad(
        fun, argnums, has_aux, holomorphic, allow_int, strict=strict, max_steps=max_steps
    )

    @functools.wraps(fun)
    def grad_fun(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return grad_fun


def _choose(
    fun: Callable[..., Any], argnums: int | Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of the chosen positional arguments alone, and those arguments."""
    numbers = [operator.index(i) for i in ([argnums] if isinstance(argnums, int) else argnums)]
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise ValueError(
                compose(
                    f"argnums={argnums} names a positional argument that was not given",
                    got=f"{len(args)} positional arguments",
                    do="pass the argument by position, or change argnums",
                )
            )
    numbers = [i % len(args) for i in numbers]

    def partial(*chosen: Any) -> Any:
        full = list(args)
        for i, value in zip(numbers, chosen):
            full[i] = value
        return fun(*full, **kwargs)

    partial.__name__ = getattr(fun, "__name__", "function")
    return partial, tuple(args[i] for i in numbers)


def _check_inputs(what: str, chosen: Any, holomorphic: bool, allow_int: bool) -> Mask:
    wanted = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(chosen)[0]:
        try:
            aval = jax.typeof(leaf)
        except TypeError:
            aval = None
        where = f"argument {jax.tree_util.keystr(path)}"
        if aval is None:
            raise NotDifferentiableError(
                compose(f"{what}: {where} is not an array", got=repr(leaf),
                        do="differentiate with respect to other arguments (argnums)")
            )  # fmt: skip
        if holomorphic and aval.dtype.kind != "c":
            raise NotDifferentiableError(
                compose(f"{what} with holomorphic=True wants complex inputs; {where} is not",
                        got=describe(aval))
            )  # fmt: skip
        if not has_tangent(aval) and not allow_int:
            raise NotDifferentiableError(
                compose(
                    f"{what} wants real- or complex-valued inputs; {where} is not",
                    got=describe(aval),
                    do="convert it to a float dtype, choose other argnums, or pass allow_int=True",
                )
            )
        if aval.dtype.kind == "c" and not holomorphic:
            pass
        wanted.append(has_tangent(aval))
    return tuple(wanted)


def _check_scalar(fun: Callable[..., Any], value: Any, holomorphic: bool) -> None:
    name = getattr(fun, "__name__", "the function")
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or jax.typeof(leaves[0]).shape != ():
        raise NotDifferentiableError(
            compose(
                f"Gradient only defined for scalar-output functions; {name} returns another",
                got=str(jax.tree.map(describe, value)),
                expected="one array of shape ()",
                do="sum or average the output, or use vjp or jacrev for a Jacobian",
            )
        )
    dtype = jax.typeof(leaves[0]).dtype
    if holomorphic != (dtype.kind == "c") or not dtypes.issubdtype(dtype, np.inexact):
        raise NotDifferentiableError(
            compose(
                f"grad wants a {'complex' if holomorphic else 'real'} output of {name}",
                got=describe(leaves[0]),
                do="convert the output to a float dtype" if dtype.kind != "c"
                else "pass holomorphic=True, or use vjp",
            )
        )  # fmt: skip
