"""The transforms' signatures and arguments, one by one, against JAX's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from sampling import sampled

import functional_bp as bp

# The same operations in the same precision: only the order of a few sums may differ.
ROUNDING = 1e-13


def same(got: Any, want: Any) -> None:
    """Same structure, shapes, dtypes and values; a Python number counts as its array."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    if any(getattr(y, "dtype", None) == jax.dtypes.float0 for pair in pairs for y in pair):
        assert all(np.shape(x) == np.shape(y) for x, y in pairs)
        kinds = [[getattr(x, "dtype", None) == jax.dtypes.float0 for x in pair] for pair in pairs]
        assert all(left == right for left, right in kinds)
        pairs = [pair for pair, (zero, _) in zip(pairs, kinds) if not zero]
    pairs = [pair for pair in pairs if not isinstance(pair[1], str)]
    left, right = ([jnp.asarray(pair[k]) for pair in pairs] for k in range(2))
    chex.assert_trees_all_equal_shapes_and_dtypes(left, right)
    chex.assert_trees_all_close(left, right, rtol=ROUNDING, atol=ROUNDING)


def network(params: Any, x: Any, scale: Any = 1.0) -> Any:
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return scale * jnp.sum(hidden**2)


PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.1, -0.2, 0.3])}
X = jnp.linspace(0.5, 2.0, 8).reshape(4, 2)


# --- argnums ---------------------------------------------------------------------------------


@pytest.mark.parametrize("argnums", [0, 1, 2, -1, -2, (0,), (1,), (0, 1), (1, 0), (0, 2), (-1, 0)])
@pytest.mark.parametrize("name", ["grad", "value_and_grad"])
def test_argnums(name: str, argnums: Any) -> None:
    args = (PARAMS, X, 2.0)
    same(getattr(bp, name)(network, argnums)(*args), getattr(jax, name)(network, argnums)(*args))


JACOBIANS = ["jacrev", "jacfwd", "hessian"]


@pytest.mark.parametrize(
    ("name", "argnums"), sampled(itertools.product(JACOBIANS, [0, 1, (0, 1), (-1,)]), 3)
)
def test_argnums_of_jacobians(name: str, argnums: Any) -> None:
    function = lambda x, y: {"a": jnp.sin(x) * y[0], "b": (x @ x) * y}
    args = (jnp.array([0.3, 0.7]), jnp.array([1.5, -0.5, 2.0]))
    witness = jax.jit(getattr(jax, name)(function, argnums))
    same(getattr(bp, name)(function, argnums)(*args), witness(*args))


def test_argnums_may_be_a_list_or_numpy_integers() -> None:
    same(bp.grad(network, [0, 1])(PARAMS, X), jax.grad(network, [0, 1])(PARAMS, X))
    numpy_index = np.int64(1)
    same(bp.grad(network, numpy_index)(PARAMS, X), jax.grad(network, 1)(PARAMS, X))


def test_keyword_arguments_are_passed_on_and_not_differentiated() -> None:
    got = bp.grad(network)(PARAMS, x=X, scale=3.0)
    same(got, jax.grad(network)(PARAMS, x=X, scale=3.0))


# --- has_aux ---------------------------------------------------------------------------------


def with_aux(x: Any) -> Any:
    return jnp.sum(x**2), {"twice": 2 * x, "text": "kept as it is", "none": None, "number": 3}


@pytest.mark.parametrize("name", ["grad", "value_and_grad"])
def test_has_aux(name: str) -> None:
    x = jnp.arange(3.0)
    got = getattr(bp, name)(with_aux, has_aux=True)(x)
    want = getattr(jax, name)(with_aux, has_aux=True)(x)
    aux = got[1] if name == "grad" else got[0][1]
    assert aux["text"] == "kept as it is" and aux["none"] is None and aux["number"] == 3
    same(got, want)


def test_has_aux_of_vjp() -> None:
    arrays_only = lambda x: (jnp.sin(x), (x + 1, jnp.arange(2)))
    out, pullback, aux = bp.vjp(arrays_only, X, has_aux=True)
    want_out, want_pullback, want_aux = jax.vjp(arrays_only, X, has_aux=True)
    same((out, aux), (want_out, want_aux))
    same(pullback(X), want_pullback(X))


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_has_aux_of_jacobians(name: str) -> None:
    function = lambda x: (jnp.sin(x), {"cosine": jnp.cos(x)})
    x = jnp.arange(3.0)
    got = getattr(bp, name)(function, has_aux=True)(x)
    same(got, getattr(jax, name)(function, has_aux=True)(x))


def test_aux_carries_no_cotangent() -> None:
    function = lambda x: (jnp.sum(jnp.sin(x)), jnp.sum(x**3))
    same(bp.grad(function, has_aux=True)(X), jax.grad(function, has_aux=True)(X))


# --- dtypes ----------------------------------------------------------------------------------


def test_allow_int() -> None:
    function = lambda n, x: jnp.sum(x[n] ** 2)
    args = (jnp.array([0, 2]), jnp.arange(3.0))
    got = bp.grad(function, (0, 1), allow_int=True)(*args)
    same(got, jax.grad(function, (0, 1), allow_int=True)(*args))
    assert got[0].dtype == jax.dtypes.float0


def test_allow_int_of_booleans_in_a_tree() -> None:
    function = lambda tree: jnp.sum(jnp.where(tree["mask"], tree["x"], 0.0))
    tree = {"mask": jnp.array([True, False]), "x": jnp.array([1.0, 2.0])}
    same(bp.grad(function, allow_int=True)(tree), jax.grad(function, allow_int=True)(tree))


def test_holomorphic() -> None:
    function = lambda z: jnp.sin(z) * z**2
    z = jnp.asarray(0.5 + 1.5j)
    same(bp.grad(function, holomorphic=True)(z), jax.grad(function, holomorphic=True)(z))


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_holomorphic_jacobians(name: str) -> None:
    function = lambda z: jnp.exp(z) * z[0]
    z = jnp.array([0.5 + 1.5j, 1.0 - 0.5j])
    got = getattr(bp, name)(function, holomorphic=True)(z)
    same(got, getattr(jax, name)(function, holomorphic=True)(z))


COMPLEX_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "modulus": jnp.abs,
    "conjugate": lambda z: z * jnp.conj(z),
    "real part": lambda z: jnp.real(z) ** 2,
    "mixed": lambda z: jnp.sin(z) + jnp.imag(z) * jnp.conj(z) ** 2,
}


@pytest.mark.parametrize("name", COMPLEX_FUNCTIONS)
def test_vjp_of_functions_that_are_not_holomorphic(name: str) -> None:
    function, z = COMPLEX_FUNCTIONS[name], jnp.array([0.5 + 1.5j, -1.0 + 0.2j])
    out, pullback = bp.vjp(function, z)
    want, want_pullback = jax.vjp(function, z)
    bar = jnp.arange(1.0, 3.0).astype(want.dtype) * (1 + (1j if want.dtype.kind == "c" else 0))
    same((out, pullback(bar)), (want, want_pullback(bar)))


@pytest.mark.parametrize("x", [2.0, 2, np.float32(2.0), np.ones(3), True, 1.5 + 0.5j])
def test_python_and_numpy_values(x: Any) -> None:
    function = lambda x: x * jnp.asarray(3.0)
    out, pullback = bp.vjp(function, x)
    want, want_pullback = jax.vjp(function, x)
    same(out, want)
    same(pullback(jnp.ones_like(want)), want_pullback(jnp.ones_like(want)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weak_types_do_not_widen(dtype: str) -> None:
    function = lambda x: jnp.sum(2.0 * x + 1)
    x = jnp.ones(3, dtype)
    same(bp.value_and_grad(function)(x), jax.value_and_grad(function)(x))


@pytest.mark.parametrize("x", [2.0, jnp.asarray(2.0, jnp.float32), jnp.asarray(2.0)])
def test_weak_type_of_the_gradient(x: Any) -> None:
    function = lambda x: jnp.sin(x) * 3.0
    got, want = bp.value_and_grad(function)(x), jax.value_and_grad(function)(x)
    assert [y.weak_type for y in got] == [y.weak_type for y in want]


def test_mixed_precision_argument() -> None:
    function = lambda x, y: jnp.sum(x.astype(jnp.float32) * y)
    args = (jnp.ones(3, jnp.bfloat16), jnp.arange(3, dtype=jnp.float32))
    same(bp.grad(function, (0, 1))(*args), jax.grad(function, (0, 1))(*args))


# --- trees, constants, unusual functions -------------------------------------------------------


class Pair(NamedTuple):
    """A named tuple is a tree."""

    left: Any
    right: Any


CONSTANT = jnp.array([1.0, 2.0, 3.0])

UNUSUAL: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "identity": (lambda x: x, (CONSTANT,)),
    "input and more": (lambda x: (x, 2 * x, x), (CONSTANT,)),
    "input of another": (lambda x, y: (y, x), (CONSTANT, 1.0)),
    "literal": (lambda x: 3.0, (CONSTANT,)),
    "constant": (lambda x: CONSTANT, (CONSTANT,)),
    "numpy constant": (lambda x: np.ones(2) * x[0], (CONSTANT,)),
    "unused argument": (lambda x, y: 2 * y, (CONSTANT, 1.0)),
    "same argument twice": (lambda x, y: x * y * x, (CONSTANT, CONSTANT)),
    "fan-out and fan-in": (lambda x: x * jnp.sin(x) + x[::-1] * x, (CONSTANT,)),
    "tree in and out": (
        lambda p: {"a": p.left * p.right[0], "b": [p.left]},
        (Pair(2.0, (3.0, None)),),
    ),
    "empty tree": (lambda p, x: (p, x), ((), 1.0)),
    "empty array": (lambda x: jnp.sin(x) * 2, (jnp.zeros((0, 3)),)),
    "sum of an empty array": (lambda x, y: jnp.sum(x) + y, (jnp.zeros((0,)), 2.0)),
    "matrix product over an empty axis": (
        lambda x, y: x @ y,
        (jnp.zeros((2, 0)), jnp.zeros((0, 3))),
    ),
    "integer output": (lambda x: (jnp.argmax(x), x * 2), (CONSTANT,)),
    "integer argument": (lambda n, x: x * n, (3, CONSTANT)),
    "boolean argument": (lambda on, x: jnp.where(on, x, -x), (True, CONSTANT)),
    "no outputs": (lambda x: (), (CONSTANT,)),
    "stop_gradient": (lambda x: x * jax.lax.stop_gradient(x), (CONSTANT,)),
    "all stopped": (lambda x: jax.lax.stop_gradient(x) * 2, (CONSTANT,)),
    "in-place update": (lambda x: x.at[1].set(0.0).at[2].multiply(3.0), (CONSTANT,)),
    "nested jit": (lambda x: jax.jit(lambda y: jnp.exp(y) * x)(x), (CONSTANT,)),
    "scalar broadcast": (lambda x, y: x + y, (2.0, CONSTANT)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_functions(name: str) -> None:
    function, args = UNUSUAL[name]
    out, pullback = bp.vjp(function, *args)
    want, want_pullback = jax.vjp(function, *args)
    same(out, want)
    bars = jax.tree.map(seed_like, want)
    same(pullback(bars), want_pullback(bars))


def seed_like(y: Any) -> Any:
    """A cotangent without equal elements; float0 for an integer output."""
    y = jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return np.zeros(y.shape, jax.dtypes.float0)
    return jnp.arange(1, y.size + 1).reshape(y.shape).astype(y.dtype)


@pytest.mark.parametrize("name", sampled(UNUSUAL, 3))
def test_unusual_functions_under_jit(name: str) -> None:
    function, args = UNUSUAL[name]
    want, want_pullback = jax.vjp(function, *args)
    bars = jax.tree.map(seed_like, want)
    kept = [bar for bar in jax.tree.leaves(bars) if bar.dtype != jax.dtypes.float0]

    @jax.jit
    def pulled(args: Any, kept: Any) -> Any:
        rest = iter(kept)
        full = [
            bar if bar.dtype == jax.dtypes.float0 else next(rest) for bar in jax.tree.leaves(bars)
        ]
        found = bp.vjp(function, *args)[1](jax.tree.unflatten(jax.tree.structure(bars), full))
        return [x for x in jax.tree.leaves(found) if x.dtype != jax.dtypes.float0]

    wanted = jax.tree.leaves(want_pullback(bars))
    same(pulled(args, kept), [x for x in wanted if x.dtype != jax.dtypes.float0])


def test_closure_over_a_tracer_of_an_outer_gradient() -> None:
    def outer(a: Any, grad: Any) -> Any:
        inner = lambda x: jnp.sum(jnp.sin(a * x))
        return jnp.sum(grad(inner)(CONSTANT) ** 2) * a

    for outside in (bp.grad, jax.grad):
        got = outside(lambda a: outer(a, bp.grad))(0.7)
        same(got, jax.grad(lambda a: outer(a, jax.grad))(0.7))


def test_closure_over_a_tracer_of_jit_and_vmap() -> None:
    inner = lambda a: bp.grad(lambda x: jnp.sum(jnp.sin(a * x)))(CONSTANT)
    want = jax.vmap(lambda a: jax.grad(lambda x: jnp.sum(jnp.sin(a * x)))(CONSTANT))
    points = jnp.array([0.5, 1.5])
    same(jax.vmap(inner)(points), want(points))
    same(jax.jit(jax.vmap(inner))(points), want(points))


def test_the_function_keeps_its_name() -> None:
    assert bp.grad(network).__name__ == jax.grad(network).__name__
    assert bp.value_and_grad(network).__wrapped__ is network


def test_static_values_may_pass_through_keywords() -> None:
    powered = lambda x, *, power: jnp.sum(x**power)
    same(bp.grad(powered)(CONSTANT, power=3), jax.grad(powered)(CONSTANT, power=3))


def test_strings_and_functions_as_other_arguments() -> None:
    function = lambda x, activation, mode: jnp.sum(activation(x)) * len(mode)
    args = (CONSTANT, jnp.tanh, "twice")
    same(bp.grad(function)(*args), jax.grad(function)(*args))


def test_the_pullback_is_a_tree_and_may_be_called_again() -> None:
    out, pullback = jax.jit(lambda x: bp.vjp(jnp.sin, x))(CONSTANT)
    same(pullback(out), (jnp.cos(CONSTANT) * out,))
    same(pullback(2 * out), (2 * jnp.cos(CONSTANT) * out,))
    mapped = jax.vmap(pullback)(jnp.eye(3))[0]
    same(mapped, jnp.diag(jnp.cos(CONSTANT)))


# --- forward mode and the rest -------------------------------------------------------------------


def test_jvp() -> None:
    args, tangents = (PARAMS, X), jax.tree.map(jnp.ones_like, (PARAMS, X))
    same(bp.jvp(network, args, tangents), jax.jvp(network, args, tangents))


def test_jvp_with_aux() -> None:
    function = lambda x: (jnp.sin(x), {"twice": 2 * x})
    got = bp.jvp(function, (X,), (X,), has_aux=True)
    same(got, jax.jvp(function, (X,), (X,), has_aux=True))


def test_linearize() -> None:
    out, pushforward = bp.linearize(network, PARAMS, X)
    want, want_pushforward = jax.linearize(network, PARAMS, X)
    tangents = jax.tree.map(jnp.ones_like, (PARAMS, X))
    same((out, pushforward(*tangents)), (want, want_pushforward(*tangents)))


def test_hvp() -> None:
    function = lambda params: network(params, X)
    tangents = jax.tree.map(jnp.ones_like, PARAMS)
    want = jax.jvp(jax.grad(function), (PARAMS,), (tangents,))[1]
    got = bp.hvp(function, (PARAMS,), (tangents,))
    chex.assert_trees_all_close(jax.tree.leaves(got)[: len(jax.tree.leaves(want))],
                                jax.tree.leaves(want), rtol=ROUNDING)  # fmt: skip


@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "hessian"])
def test_jacobians_of_trees(name: str) -> None:
    function = lambda params: {"sum": network(params, X), "b": params["b"] ** 2}
    same(getattr(bp, name)(function)(PARAMS), jax.jit(getattr(jax, name)(function))(PARAMS))


@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "hessian"])
def test_jacobians_of_empty_arrays(name: str) -> None:
    function = lambda x: jnp.sin(x) * 2
    x = jnp.zeros((0,))
    same(getattr(bp, name)(function)(x), getattr(jax, name)(function)(x))


def test_a_wrong_gradient_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        same(bp.grad(network)(PARAMS, X * 1.000001), jax.grad(network)(PARAMS, X))


def test_a_primitive_of_which_the_transpose_alone_is_known() -> None:
    """It stands in a tangent function, where everything is linear."""
    double = Primitive("double")
    double.def_impl(lambda x: 2 * x)
    double.def_abstract_eval(lambda x: x)
    mlir.register_lowering(double, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    ad.primitive_transposes[double] = lambda bar, x: [2 * bar]
    try:
        square = jax.custom_jvp(lambda x: x * x)
        square.defjvp(lambda primals, dots: (primals[0] ** 2, double.bind(primals[0] * dots[0])))
        assert bp.grad(square)(3.0) == jax.jit(bp.grad(square))(3.0) == 6.0
        with pytest.raises(NotImplementedError, match="double"):
            bp.grad(double.bind)(3.0)
    finally:
        del ad.primitive_transposes[double]


def test_errors_of_the_class_that_jax_raises() -> None:
    vectors = lambda a: jnp.sum(jnp.abs(jnp.linalg.eig(a)[1]))
    for package in (bp, jax):
        with pytest.raises(NotImplementedError, match="eigenvectors"):
            package.grad(vectors)(jnp.eye(2) + 1.0)
        for output in (lambda x: None, lambda x: (), lambda x: {"loss": x}):
            with pytest.raises(TypeError, match="scalar-output"):
                package.grad(output)(2.0)
        with pytest.raises(TypeError, match="tuple"):
            package.jvp(jnp.sin, 2.0, 1.0)


def test_forward_over_forward_where_an_operand_only_chooses() -> None:
    pooled = lambda x: x[:3, :3] * lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID")
    x = jnp.arange(16.0).reshape(4, 4) % 7

    def twice(package: Any) -> Any:
        of_linear = package.jvp(package.linearize(pooled, x)[1], (x,), (x,))
        return package.jacfwd(package.jacfwd(pooled))(x), of_linear

    chex.assert_trees_all_close(*jax.jit(lambda: (twice(bp), twice(jax)))())
