"""Forward mode, and both modes together, give Jacobians, Hessians and their products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.define_by_run import split
from functional_bp.engine.higher_order import Options, has_tangent
from functional_bp.engine.staging import Flat, explaining
from functional_bp.engine.sweeps import Residuals
from functional_bp.engine.tangents import Pusher, push_along
from functional_bp.engine.transforms import (
    Static,
    as_arrays,
    as_asked,
    check_inputs,
    choose,
    grad,
    vjp_of_chosen,
    vjp_wanted,
    weakened,
)
from functional_bp.errors import (
    CotangentError,
    MissingRuleError,
    NotDifferentiableError,
    compose,
    describe,
)


def jvp(
    fun: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    has_aux: bool = False,
    *,
    strict: bool = False,
) -> Any:
    """Push a tangent forward, y = f(x) and ẏ = J ẋ, as ``jax.jvp`` does.

    The same rules as in reverse, each pullback transposed once more. Loops need no bound.

    Args:
        fun: takes and returns pytrees of arrays.
        primals: the point x, a tuple or list of arguments.
        tangents: the direction ẋ, of the same structure, shapes and (tangent) dtypes.
        has_aux: ``fun`` returns ``(output, auxiliary)``.
        strict: refuse an operation whose rule is not ours but its author's.

    Returns:
        ``(output, tangent)``, or ``(output, tangent, auxiliary)``.

    Raises:
        CotangentError: a tangent's structure, shape or dtype does not match its primal.
    """
    for what, given in ("primals", primals), ("tangents", tangents):
        if not isinstance(given, tuple | list):
            raise CotangentError(
                compose(f"the {what} of jvp are not one per argument", got=describe(given),
                        expected="a tuple or list", do=f"write ({what[:-1]},) for a single one")
            )  # fmt: skip
    flat = Flat(fun, tuple(primals), has_aux)
    dots = _check_tangents(tuple(tangents), flat.in_tree, list(map(jax.typeof, flat.leaves)))
    outs, out_dots = _pushed(flat, dots, Options(strict))
    out, aux = flat.output(outs)
    avals = map(jax.typeof, outs[: flat.out_count])
    out_dot = jax.tree.unflatten(flat.out_tree, list(map(_as_tangent, out_dots, avals)))
    return (out, out_dot, aux) if has_aux else (out, out_dot)


def _pushed(flat: Flat, dots: Sequence[Any], options: Options) -> tuple[list[Any], list[Any]]:
    """Return outputs and tangents by running the function."""
    leaves = as_arrays(flat.leaves)
    pusher = Pusher(options)
    with explaining(is_staged=False), _jax.under(pusher):
        found = flat(*pusher.pair(leaves, dots))
    pusher.invalidate()
    on, values = split(pusher, found)
    return values, [x.tangent if o else None for x, o in zip(found, on)]


def _as_tangent(dot: Any, aval: Any) -> Any:
    if not has_tangent(aval):
        return np.zeros(aval.shape, dtypes.float0)
    return weakened(sweeps.zeros(aval) if dot is None else dot, aval)


def _check_tangents(tangents: Any, in_tree: Any, avals: Sequence[Any]) -> list[Any]:
    dots, tree = jax.tree.flatten(tangents)
    if tree != in_tree:
        raise CotangentError(
            compose("the tangents have another structure than the primals", got=str(tree),
                    expected=str(in_tree))
        )  # fmt: skip
    found: list[Any] = []
    for i, (dot, aval) in enumerate(zip(dots, avals)):
        expected = aval.to_tangent_aval()
        got = dot if getattr(dot, "dtype", None) == dtypes.float0 else jax.typeof(dot)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise CotangentError(
                compose(f"tangent {i} has the wrong shape or dtype", got=describe(got),
                        expected=f"{describe(expected)}, because the primal is {describe(aval)}")
            )  # fmt: skip
        found.append(sweeps.match_axes(jnp.asarray(dot), aval) if has_tangent(aval) else None)
    return found


def linearize(
    fun: Callable[..., Any],
    *primals: Any,
    has_aux: bool = False,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Any:
    """Return the output y = f(x) and the linear map ẋ ↦ J ẋ, with the forward sweep done once.

    As ``jax.linearize``: the map keeps what the rules name, and may be applied many times.
    """
    options = Options(strict, max_steps, staged)
    wanted = tuple(has_tangent(jax.typeof(x)) for x in jax.tree.leaves(primals))
    try:
        out, pullback, aux = vjp_wanted(fun, primals, wanted, has_aux, options)
    except MissingRuleError:  # a loop without a bound has forward mode all the same
        out, _, *rest = jvp(
            fun, primals, jax.tree.map(_zero_tangent, primals), has_aux, strict=strict
        )
        plain = (lambda *args: fun(*args)[0]) if has_aux else fun
        again = lambda primals, *dots: jvp(plain, primals, dots, strict=strict)[1]
        return (out, jax.tree_util.Partial(again, primals), *rest)
    out_avals = tuple(map(jax.typeof, jax.tree.leaves(out)))
    tangent_map = LinearMap(pullback.residuals, pullback.static, options, out_avals)
    return (out, tangent_map, aux) if has_aux else (out, tangent_map)


@jax.tree_util.register_dataclass
@dataclass(eq=False, repr=False)
class LinearMap:
    """``linearize`` returns this map ẋ ↦ J ẋ, a pytree, so that it may enter and leave ``jit``."""

    residuals: Residuals
    static: Static = field(metadata={"static": True})
    options: Options = field(metadata={"static": True})
    out_avals: tuple[Any, ...] = field(metadata={"static": True})

    def __post_init__(self) -> None:
        self._transposes: dict[Any, Any] = {}

    def __call__(self, *dots: Any) -> Any:
        """Return J ẋ, for one tangent per argument.

        Raises:
            CotangentError: a tangent's structure, shape or dtype does not match its primal.
        """
        static = self.static
        given = _check_tangents(dots, static.in_tree, static.in_avals)
        found = push_along(static.plan, self.residuals, given, self.options, self._transposes)
        return jax.tree.unflatten(static.out_tree, list(map(_as_tangent, found, self.out_avals)))


def _zero_tangent(x: Any) -> Any:
    return _as_tangent(None, jax.typeof(x))


def jacrev(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Callable[..., Any]:
    """Make a function that returns the Jacobian, row by row in reverse mode; as ``jax.jacrev``.

    Returns:
        A function of the same arguments. Each leaf has shape ``output.shape + input.shape``.
    """
    options = Options(strict, max_steps, staged)

    @functools.wraps(fun)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        out, pullback, aux, chosen = vjp_of_chosen(
            "jacrev", fun, argnums, args, kwargs, holomorphic, allow_int, has_aux, options
        )
        _check_outputs("jacrev", out, holomorphic)
        rows = as_asked(argnums, jax.vmap(pullback)(_standard_basis(out)))
        source = as_asked(argnums, chosen)
        blocks = jax.tree.map(lambda leaf: _split(leaf, out, axis=0), rows)
        found = jax.tree.transpose(jax.tree.structure(source), jax.tree.structure(out), blocks)
        return (found, aux) if has_aux else found

    return jacobian


jacobian = jacrev


def jacfwd(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    strict: bool = False,
) -> Callable[..., Any]:
    """Make a function that returns the Jacobian, column by column in forward mode; as
    ``jax.jacfwd``.

    Returns:
        A function of the same arguments. Each leaf has shape ``output.shape + input.shape``.
    """

    @functools.wraps(fun)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        partial, chosen = choose(fun, argnums, args, kwargs)
        _check_real_inputs("jacfwd", chosen, holomorphic)
        push = lambda *dots: jvp(partial, chosen, dots, has_aux, strict=strict)
        out_axes = (None, -1, None) if has_aux else (None, -1)
        out, columns, *aux = jax.vmap(push, out_axes=out_axes)(*_standard_basis(chosen))
        _check_outputs("jacfwd", out, holomorphic)
        source = as_asked(argnums, chosen)
        found = jax.tree.map(lambda leaf: _split(leaf, source, axis=-1), columns)
        return (found, *aux) if has_aux else found

    return jacobian


def hessian(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Callable[..., Any]:
    """Make a function that returns the Hessian ∂²f/∂x∂x, forward over reverse; as JAX does."""
    how: Any = {"strict": strict, "max_steps": max_steps, "staged": staged}
    reverse = jacrev(fun, argnums, has_aux=has_aux, holomorphic=holomorphic, **how)
    return jacfwd(reverse, argnums, has_aux=has_aux, holomorphic=holomorphic, strict=strict)


def hvp(
    fun: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    strict: bool = False,
    max_steps: int | None = None,
    staged: bool | None = None,
) -> Any:
    """Compute the Hessian-vector product H v = d/dε ∇f(x + ε v), forward over reverse.

    Args:
        fun: scalar-valued.
        primals: the point x, a tuple or list of arguments.
        tangents: the direction v, of the same structure.
        strict: refuse an operation whose rule is not ours but its author's.
        max_steps: the bound of loops whose trip count is not known before they run.
        staged: as for ``vjp``.

    Returns:
        H v, a tuple with one entry per argument, or that entry alone if there is one argument.

    Example:
        >>> import functional_bp as bp, jax.numpy as jnp
        >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
        >>> print(bp.hvp(lambda x: jnp.sum(x**3), (x,), (v,)))
        [6. 0.]
    """
    numbers = 0 if len(primals) == 1 else tuple(range(len(primals)))
    gradient = grad(fun, numbers, strict=strict, max_steps=max_steps, staged=staged)
    return jvp(gradient, primals, tangents, strict=strict)[1]


def _standard_basis(tree: Any) -> Any:
    """Make the unit vectors of the tree's total size, along a new first axis of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    sizes = [np.size(leaf) for leaf in leaves]
    found = []
    for i, leaf in enumerate(leaves):
        aval = jax.typeof(leaf)
        before, after = sum(sizes[:i]), sum(sizes[i + 1 :])
        if not has_tangent(aval):
            found.append(np.zeros((sum(sizes), *aval.shape), dtypes.float0))
            continue
        eye = jnp.eye(sizes[i], dtype=aval.dtype)
        block = jnp.pad(eye, ((before, after), (0, 0)))
        found.append(weakened(block.reshape(sum(sizes), *aval.shape), aval))
    return jax.tree.unflatten(structure, found)


def _split(array: Any, tree: Any, axis: int) -> Any:
    """Split an array along the axis that runs over the entries of ``tree``, as a tree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    split_ = np.split if array.dtype == dtypes.float0 else jnp.split
    around = (
        lambda part, leaf: (  # the leaf's axes in the place of the one
            (*np.shape(leaf), *part.shape[1:]) if axis == 0 else (*part.shape[:-1], *np.shape(leaf))
        )
    )
    parts = split_(array, ends, axis=axis)
    shaped = [part.reshape(around(part, leaf)) for part, leaf in zip(parts, leaves)]
    return jax.tree.unflatten(structure, shaped)


def _check_real_inputs(what: str, chosen: Any, holomorphic: bool) -> None:
    check_inputs(what, chosen, holomorphic, allow_int=False)
    for leaf in jax.tree.leaves(chosen):
        if jax.typeof(leaf).dtype.kind == "c" and not holomorphic:
            raise NotDifferentiableError(
                compose(f"{what} wants real inputs", got=describe(leaf),
                        do="pass holomorphic=True, or use jvp")
            )  # fmt: skip


def _check_outputs(what: str, out: Any, holomorphic: bool) -> None:
    """Check as JAX: the output of ``jacrev`` is real, unless holomorphic; that of ``jacfwd``
    anything.
    """
    for leaf in jax.tree.leaves(out):
        aval = jax.typeof(leaf)
        is_complex = has_tangent(aval) and aval.dtype.kind == "c"
        is_right = is_complex if holomorphic else has_tangent(aval) and not is_complex
        if not is_right and (holomorphic or what == "jacrev"):
            raise NotDifferentiableError(
                compose(f"{what} wants {'complex' if holomorphic else 'real'} outputs",
                        got=describe(leaf), do="set holomorphic accordingly, or use vjp or jvp")
            )  # fmt: skip
