"""The transforms have JAX's signatures and our sweeps.

Each traces the function once (``jax.make_jaxpr``), plans, and runs the sweeps on values that may
be tracers; so all of them work inside and outside ``jit``, ``vmap``, ``scan`` and each other.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, lax
from jax.extend.core import Jaxpr, Literal
from jax.ref import addupdate

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.define_by_run import ClosureError, record
from functional_bp.engine.higher_order import Mask, Options, has_tangent
from functional_bp.engine.plan import Plan, plan_once
from functional_bp.engine.staging import Flat, explaining, stage_pure
from functional_bp.engine.sweeps import Residuals
from functional_bp.errors import (
    ArgumentsError,
    CotangentError,
    NotDifferentiableError,
    compose,
    describe,
)

markers: Any = jax.ad  # pyright: ignore[reportPrivateImportUsage]  # JAX's words for with_refs


@dataclass(eq=False, repr=False)
class Static:
    """This goes with the kept arrays; it is equal only to itself, lest a pytree compare it."""

    plan: Plan
    in_tree: Any
    out_tree: Any
    out_avals: tuple[Any, ...]
    in_avals: tuple[Any, ...]
    name: str


@jax.tree_util.register_dataclass
@dataclass(eq=False, repr=False)
class PullbackFunction:
    """``vjp`` returns this function of the output's cotangents to the inputs' ones, a pytree."""

    residuals: Residuals
    static: Static = field(metadata={"static": True})

    def __call__(self, cotangent: Any) -> tuple[Any, ...]:
        """Return x̄ = Jᵀ ȳ for every input.

        Raises:
            CotangentError: its structure, a shape or a dtype is not that of the output.
        """
        static = self.static
        found = self.flat(_check_cotangent(cotangent, static))
        bars = [_as_cotangent(bar, aval) for bar, aval in zip(found, static.in_avals)]
        return jax.tree.unflatten(static.in_tree, bars)

    def with_refs(self, *places: Any) -> Callable[[Any], tuple[Any, ...]]:
        """Make the pullback add cotangents to mutable arrays in place, as that of ``jax.vjp`` does.

        Args:
            *places: for each input, in its structure: a reference (``jax.new_ref``) to which its
                cotangent is added; ``jax.ad.GradValue()``, or None, for a cotangent that is
                returned; ``jax.ad.DontWant()`` for one that nobody wants.

        Returns:
            A function of the output's cotangent. In the place of what was added stands
            ``jax.ad.GradRef()``, in that of what was not wanted ``jax.ad.DidntWant()``.
        """
        static = self.static
        leaves, tree = jax.tree.flatten(places, is_leaf=lambda x: x is None)
        if tree != static.in_tree:
            raise CotangentError(
                compose(
                    f"with_refs of the pullback of {static.name} has the wrong structure",
                    got=str(tree), expected=f"{static.in_tree}, as the inputs",
                )
            )  # fmt: skip

        def pull(cotangent: Any) -> tuple[Any, ...]:
            found: list[Any] = []
            for bar, place in zip(jax.tree.leaves(self(cotangent)), leaves, strict=True):
                if _jax.is_reference(getattr(place, "aval", None)):
                    addupdate(place, ..., bar)
                    bar = markers.GradRef()
                found.append(markers.DidntWant() if isinstance(place, markers.DontWant) else bar)
            return jax.tree.unflatten(static.in_tree, found)

        return pull

    @property
    def plan(self) -> Plan:
        """``plan`` is the plan of the reverse sweep."""
        return self.static.plan

    def flat(self, bars: Sequence[Any]) -> list[Any]:
        """Do the same on lists of leaves, with None for zero on both sides."""
        auxiliary = [None] * (len(self.plan.jaxpr.outvars) - len(bars))
        return sweeps.reverse(self.plan, self.residuals, [*bars, *auxiliary])


def _check_cotangent(cotangent: Any, static: Static) -> list[Any]:
    leaves, tree = jax.tree.flatten(cotangent)
    if tree != static.out_tree:
        raise CotangentError(
            compose(
                f"the cotangent given to the pullback of {static.name} has the wrong structure",
                got=str(tree),
                expected=f"{static.out_tree}, as the function's output",
            )
        )
    paths = jax.tree_util.tree_flatten_with_path(cotangent)[0]
    for (path, leaf), aval in zip(paths, static.out_avals):
        expected = aval.to_tangent_aval()
        got = leaf if getattr(leaf, "dtype", None) == dtypes.float0 else jax.typeof(leaf)
        if not has_tangent(aval) and got.dtype.kind == aval.dtype.kind:
            expected = aval  # integer zeros for an integer output, as JAX takes them
            got = aval if got.shape == aval.shape else got
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise CotangentError(
                compose(
                    f"the cotangent of output{jax.tree_util.keystr(path)} of {static.name} has the "
                    "wrong shape or dtype",
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
    return weakened(sweeps.zeros(aval) if bar is None else bar, aval)


def weakened(value: Any, aval: Any) -> Any:
    """Make a cotangent or tangent weakly typed if its primal is, as JAX does."""
    if not aval.weak_type or jax.typeof(value).weak_type:
        return value
    return lax.convert_element_type_p.bind(
        value, new_dtype=aval.dtype, weak_type=True, sharding=None
    )


def vjp(
    fun: Callable[..., Any],
    *primals: Any,
    has_aux: bool = False,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Any:
    """Return the output y = f(x) and the pullback ȳ ↦ Jᵀ ȳ, as ``jax.vjp`` does.

    Args:
        fun: takes and returns pytrees of arrays.
        primals: the point x.
        has_aux: ``fun`` returns ``(output, auxiliary)``; the auxiliary is passed on.
        strict: refuse an operation whose rule is not ours but its author's.
        max_steps: the bound of loops whose trip count is not known before they run.
        staged: trace the function to a graph first (True), or run it and record (False); by
            default the first inside ``jit``, the second elsewhere, where Python may look at values.

    Returns:
        ``(output, pullback)``, or ``(output, pullback, auxiliary)``.
    """
    wanted = tuple(has_tangent(jax.typeof(x)) for x in jax.tree.leaves(primals))
    out, pullback, aux = vjp_wanted(
        fun, primals, wanted, has_aux, Options(strict, max_steps, staged)
    )
    return (out, pullback, aux) if has_aux else (out, pullback)


def vjp_wanted(
    fun: Callable[..., Any], primals: Any, wanted: Mask, has_aux: bool, options: Options
) -> tuple[Any, PullbackFunction, Any]:
    """Return output, pullback and auxiliary (None without one), with cotangents of the wanted
    inputs.
    """
    flat = Flat(fun, primals, has_aux)
    plan, outs, residuals, in_avals = _run(flat, wanted, options)
    out_avals = tuple(v.aval for v in plan.jaxpr.outvars[: flat.out_count])
    name = getattr(fun, "__name__", type(fun).__name__)
    static = Static(plan, flat.in_tree, flat.out_tree, out_avals, in_avals, name)
    out, aux = flat.output(outs)
    return out, PullbackFunction(residuals, static), aux


def _run(
    flat: Flat, wanted: Mask, options: Options
) -> tuple[Plan, list[Any], Residuals, tuple[Any, ...]]:
    """Run the forward sweep of a function, staged or recorded: plan, outputs, residuals, input
    types.

    Inside ``jit`` the function is staged, so that the plan knows all before anything runs; where
    nothing is traced around it, it is recorded, and Python sees values. Where the rule of a
    function made inside holds a value of the staged graph, it is recorded as well.
    """
    is_staged = _jax.is_staged_now() if options.staged is None else options.staged
    if not is_staged:
        return _recorded(flat, wanted, options)
    jaxpr, consts, is_whole = stage_pure(flat)
    if not is_whole:
        if options.staged is None:
            return _recorded(flat, wanted, options)
        raise ClosureError(
            compose(
                "the derivative of a function that is made inside closes over a value made inside",
                got="a function that is staged to a graph: staged=True",
                do="leave staged=True out, or pass the value to the inner function",
            )
        )
    seeded = tuple(i < flat.out_count and has_tangent(v.aval) for i, v in enumerate(jaxpr.outvars))
    everything = (True,) * len(jaxpr.invars)
    plan = plan_once(jaxpr, wanted, seeded, (True,) * len(seeded), options, held=everything)
    with explaining(is_staged=True):
        outs, residuals = sweeps.forward(plan, as_arrays(consts), as_arrays(flat.leaves))
    return plan, literals_as_arrays(outs, jaxpr), residuals, tuple(v.aval for v in jaxpr.invars)


def _recorded(
    flat: Flat, wanted: Mask, options: Options
) -> tuple[Plan, list[Any], Residuals, tuple[Any, ...]]:
    leaves = as_arrays(flat.leaves)
    with explaining(is_staged=False):
        recorder, inputs, outs = record(flat, leaves, wanted, options)
    seeded = tuple(i < flat.out_count for i in range(len(outs)))
    plan, values, residuals = recorder.finish(inputs, outs, seeded)
    return plan, values, residuals, tuple(map(jax.typeof, flat.leaves))


def as_arrays(leaves: Sequence[Any]) -> list[Any]:
    """Turn Python and NumPy numbers into JAX arrays, so that rules meet nothing else."""
    plain = bool | int | float | complex | np.ndarray | np.generic
    return [jnp.asarray(leaf) if isinstance(leaf, plain) else leaf for leaf in leaves]


def literals_as_arrays(outs: Sequence[Any], jaxpr: Jaxpr) -> list[Any]:
    """Turn outputs that the graph has as constants into arrays."""
    avals: list[Any] = [v.aval for v in jaxpr.outvars]
    return [
        jnp.asarray(out, aval.dtype) if isinstance(v, Literal) else out
        for out, v, aval in zip(outs, jaxpr.outvars, avals)
    ]


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    *,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Callable[..., Any]:
    """Make a function that returns ``(f(x), ∇f(x))``, as ``jax.value_and_grad`` does."""
    if reduce_axes:
        raise NotImplementedError("reduce_axes is deprecated in JAX, and not implemented")
    options = Options(strict, max_steps, staged)

    @functools.wraps(fun)
    def value_and_grad_fun(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, pullback, aux, _ = vjp_of_chosen(
            "grad", fun, argnums, args, kwargs, holomorphic, allow_int, has_aux, options
        )
        _check_scalar(fun, value, holomorphic)
        (seed,) = [lax.full_like(leaf, 1) for leaf in jax.tree.leaves(value)]  # on its device
        grads = as_asked(argnums, pullback(jax.tree.unflatten(jax.tree.structure(value), [seed])))
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_fun


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    *,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Callable[..., Any]:
    """Make a function that returns ∇f(x), as ``jax.grad`` does."""
    how: Any = {"strict": strict, "max_steps": max_steps, "staged": staged}
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes, **how)

    @functools.wraps(fun)
    def grad_fun(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return grad_fun


def fwd_and_bwd(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool = False,
    jitted: bool = True,
    *,
    strict: bool = False,
    max_steps: int | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make the forward and the reverse sweep two functions, as ``jax.fwd_and_bwd`` does.

    Returns:
        ``fwd``, which takes the arguments and returns ``(output, pullback)``, with ``has_aux`` also
        the auxiliary; and ``bwd``, which takes the pullback and the output's cotangent. Both are
        jitted, and compile once however often they are called.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        partial, chosen = choose(fun, argnums, args, kwargs)
        return vjp(partial, *chosen, has_aux=has_aux, strict=strict, max_steps=max_steps)

    def backward(pullback: PullbackFunction, cotangent: Any) -> Any:
        return as_asked(argnums, pullback(cotangent))

    return (jax.jit(forward), jax.jit(backward)) if jitted else (forward, backward)


def choose(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function of the chosen positional arguments alone, and those arguments."""
    numbers = [operator.index(i) for i in (argnums if isinstance(argnums, Sequence) else [argnums])]
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise ArgumentsError(
                compose(
                    f"argnums={argnums} names a positional argument that was not given",
                    got=f"{len(args)} positional arguments",
                    do="pass the argument by position, or change argnums",
                )
            )
    numbers = [i % len(args) for i in numbers]
    if len(set(numbers)) < len(numbers):
        raise ArgumentsError(
            compose(
                f"argnums={argnums} names an argument twice",
                expected="each argument once",
                do="name it once; its gradient may be used twice",
            )
        )

    def partial(*chosen: Any) -> Any:
        full = list(args)
        for i, value in zip(numbers, chosen):
            full[i] = value
        return fun(*full, **kwargs)

    partial.__name__ = getattr(fun, "__name__", "function")
    return partial, tuple(args[i] for i in numbers)


def as_asked(argnums: int | Sequence[int], each: Sequence[Any]) -> Any:
    """Return what there is for each chosen argument; of ``argnums=1`` that of the one alone."""
    return each if isinstance(argnums, Sequence) else each[0]


def vjp_of_chosen(
    what: str,
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    holomorphic: bool,
    allow_int: bool,
    has_aux: bool,
    options: Options,
) -> tuple[Any, PullbackFunction, Any, tuple[Any, ...]]:
    """Return output, pullback, auxiliary and the chosen arguments, for the transform ``what``."""
    partial, chosen = choose(fun, argnums, args, kwargs)
    wanted = check_inputs(what, chosen, holomorphic, allow_int)
    return *vjp_wanted(partial, chosen, wanted, has_aux, options), chosen


def check_inputs(what: str, chosen: Any, holomorphic: bool, allow_int: bool) -> Mask:
    """Say which leaves of the chosen arguments have a tangent space; raise an error for what may
    not be.
    """
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
        wanted.append(has_tangent(aval))
    return tuple(wanted)


def _check_scalar(fun: Callable[..., Any], value: Any, holomorphic: bool) -> None:
    name = getattr(fun, "__name__", "the function")
    leaves, tree = jax.tree.flatten(value)
    is_array = len(leaves) == 1 and jax.tree_util.treedef_is_leaf(tree)
    if not is_array or jax.typeof(leaves[0]).shape != ():
        raise NotDifferentiableError(
            compose(
                f"Gradient only defined for scalar-output functions; {name} returns another",
                got=str(jax.tree.map(describe, value)),
                expected="one array of shape ()",
                do="sum or average the output, or use vjp or jacrev for a Jacobian",
            )
        )
    dtype = jax.typeof(leaves[0]).dtype
    if holomorphic != (dtype.kind == "c") or not jnp.issubdtype(dtype, np.inexact):
        raise NotDifferentiableError(
            compose(
                f"grad wants a {'complex' if holomorphic else 'real'} output of {name}",
                got=describe(leaves[0]),
                do="convert the output to a float dtype" if dtype.kind != "c"
                else "pass holomorphic=True, or use vjp",
            )
        )  # fmt: skip
