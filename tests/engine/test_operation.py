"""``bp.operation``: hand-written pullbacks under our transforms, JAX's, and the control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from measuring import as_scalar

import functional_bp as bp
from functional_bp.errors import RuleError

# The same mathematics in float64, two derivatives deep at most, on a dozen numbers of size one.
ROUNDING = 1e-11

X = jnp.asarray(np.linspace(-1.0, 1.5, 12).reshape(4, 3))
SCALE = jnp.asarray([0.5, -1.0, 2.0])


def plain_norm(x: Any, scale: Any, *, eps: float = 1e-3) -> Any:
    """y = s · (x − mean x) / √(var x + ε) over the last axis, in plain JAX."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    return scale * centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)


def _norm_forward(x: Any, scale: Any, *, eps: float = 1e-3) -> Any:
    centred = x - jnp.mean(x, -1, keepdims=True)
    rstd = lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    return scale * centred * rstd, (centred * rstd, rstd)


def _norm_x(y_bar: Any, x_hat: Any, rstd: Any, scale: Any) -> Any:
    hat_bar = y_bar * scale
    along = jnp.mean(hat_bar * x_hat, -1, keepdims=True)
    return rstd * (hat_bar - jnp.mean(hat_bar, -1, keepdims=True) - x_hat * along)


norm = bp.operation(
    "x, scale -> y | x_hat, rstd",
    _norm_forward,
    x=_norm_x,
    scale=lambda y_bar, x_hat: y_bar * x_hat,  # summed over the batch by the engine
    why="x̂ = (x − μ)/σ;  x̄ = (h − mean h − x̂ mean(h x̂))/σ,  h = ȳ s",
)

# Two outputs, one pullback that reads a single cotangent, a static parameter, no auxiliary.
polar = bp.operation(
    "r, a -> x, y",
    lambda r, a, *, turns=0.0: (r * jnp.cos(a + turns), r * jnp.sin(a + turns)),
    r=lambda x_bar, y_bar, a, *, turns=0.0: x_bar * jnp.cos(a + turns) + y_bar * jnp.sin(a + turns),
    a=lambda x_bar, y_bar, x, y: y_bar * x - x_bar * y,
    why="x = r cos a, y = r sin a",
)


def plain_polar(r: Any, a: Any, *, turns: float = 0.0) -> Any:
    return r * jnp.cos(a + turns), r * jnp.sin(a + turns)


OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, Any]]] = {
    "norm": (norm, plain_norm, (X, SCALE)),
    "polar": (polar, plain_polar, (X[0] + 2.0, SCALE)),
}
GRADS = {"bp.grad": bp.grad, "jax.grad": jax.grad}


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", OPERATIONS)
def test_value(name: str) -> None:
    ours, plain, args = OPERATIONS[name]
    same(ours(*args), plain(*args))
    same(jax.jit(ours)(*args), plain(*args))


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient(name: str, grad: str, argnums: Any) -> None:
    ours, plain, args = OPERATIONS[name]
    same(GRADS[grad](as_scalar(ours), argnums)(*args), jax.grad(as_scalar(plain), argnums)(*args))


def _vmapped(f: Any) -> Any:
    return lambda x, s: jax.vmap(f, (0, None))(jnp.stack([x, 0.5 * x]), s)


def _scanned(f: Any) -> Any:
    def around(x: Any, s: Any) -> Any:
        step = lambda count, k: (count + 1, f(k * x, s))
        return lax.scan(step, 0, jnp.asarray([1.0, 0.5]))[1]

    return around


def _sharded(f: Any) -> Any:
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    local = lambda x, s: jax.tree.map(lambda y: y[None], f(x[0], s))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"))
    return lambda x, s: mapped(jnp.stack([x, 0.5 * x]), s)


SURROUNDINGS = {
    "jit": jax.jit, "vmap": _vmapped, "scan": _scanned, "shard_map": _sharded,
    "checkpoint": jax.checkpoint,
}  # fmt: skip


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_of_a_transform(name: str, around: str) -> None:
    ours, plain, args = OPERATIONS[name]
    enclose = SURROUNDINGS[around]
    want = jax.jit(jax.grad(as_scalar(enclose(plain)), (0, 1)))(*args)
    for grad in GRADS.values():
        same(jax.jit(grad(as_scalar(enclose(ours)), (0, 1)))(*args), want)


@pytest.mark.parametrize("around", ["vmap", "scan", "shard_map"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_inside_a_transform(name: str, around: str) -> None:
    ours, plain, args = OPERATIONS[name]
    enclose = SURROUNDINGS[around]
    want = jax.jit(enclose(jax.grad(as_scalar(plain), (0, 1))))(*args)
    same(jax.jit(enclose(bp.grad(as_scalar(ours), (0, 1))))(*args), want)


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_order(name: str) -> None:
    ours, plain, args = OPERATIONS[name]

    def energy(f: Any, first: Any) -> Any:
        return lambda *args: sum(jnp.sum(bar**2) for bar in first(as_scalar(f), (0, 1))(*args))

    want = jax.jit(jax.grad(energy(plain, jax.grad), (0, 1)))(*args)
    for first, second in [(bp.grad, bp.grad), (jax.grad, bp.grad), (bp.grad, jax.grad)]:
        same(jax.jit(second(energy(ours, first), (0, 1)))(*args), want)


def test_only_wanted_pullbacks_are_called() -> None:
    called: list[str] = []

    def noting(name: str, factor: Any) -> Any:
        def pullback(z_bar: Any, x: Any, y: Any) -> Any:
            called.append(name)
            return factor(z_bar, x, y)

        return pullback

    product = bp.operation(
        "x, y -> z",
        lambda x, y: x * y,
        x=noting("x", lambda z_bar, x, y: z_bar * y),
        y=noting("y", lambda z_bar, x, y: z_bar * x),
    )
    for grad in GRADS.values():
        for argnums, expected in [(0, ["x"]), (1, ["y"]), ((0, 1), ["x", "y"])]:
            called.clear()
            grad(product, argnums)(2.0, 3.0)
            assert sorted(set(called)) == expected


def test_only_what_the_wanted_pullbacks_name_is_kept() -> None:
    wide = lambda x: norm(x, SCALE)
    by_scale = lambda s: norm(X, s)
    size = lambda f, x: sum(y.nbytes for y in jax.tree.leaves(bp.vjp(f, x)[1]))
    assert size(by_scale, SCALE) == X.nbytes  # x̂ alone
    assert size(wide, X) == X.nbytes + X.nbytes // 3 + SCALE.nbytes  # x̂, 1/σ and the scale


def test_an_absent_cotangent_is_not_an_array_of_zeros() -> None:
    seen: list[Any] = []

    def pullback(x: Any, p_bar: Any = None, q_bar: Any = None) -> Any:
        seen.append((p_bar is None, q_bar is None))
        return p_bar * jnp.cos(x)

    pair = bp.operation("x -> p, q", lambda x: (jnp.sin(x), jnp.cos(x)), x=pullback)
    for grad in GRADS.values():
        assert grad(lambda x: pair(x)[0])(0.0) == 1.0
    assert seen == [(False, True)] * 2


def test_an_operand_without_a_pullback_has_gradient_zero() -> None:
    scaled = bp.operation("x, n -> y", lambda x, n: x * n, x=lambda y_bar, n: y_bar * n)
    assert bp.grad(scaled, (0, 1))(2.0, 3.0) == (3.0, 0.0)
    assert jax.grad(scaled, (0, 1))(2.0, 3.0) == (3.0, 0.0)
    assert bp.grad(scaled)(2.0, 3) == 3.0  # an integer operand


def test_the_engine_sums_over_broadcast_axes() -> None:
    add = bp.operation(
        "x, b -> y", lambda x, b: x + b, x=lambda y_bar: y_bar, b=lambda y_bar: y_bar
    )
    for grad in GRADS.values():
        b_bar = grad(lambda x, b: jnp.sum(add(x, b)), 1)(X, SCALE)
        np.testing.assert_array_equal(b_bar, np.full(3, 4.0))


def test_parameters_are_static_keywords() -> None:
    for turns in (0.0, 0.25):
        got = jax.grad(lambda r, turns=turns: sum(polar(r, 0.3, turns=turns)))(2.0)
        want = jax.grad(lambda r, turns=turns: sum(plain_polar(r, 0.3, turns=turns)))(2.0)
        np.testing.assert_allclose(got, want, rtol=ROUNDING)
        got = bp.grad(lambda r, turns=turns: sum(polar(r, 0.3, turns=turns)))(2.0)
        np.testing.assert_allclose(got, want, rtol=ROUNDING)
    got = bp.grad(lambda x: jnp.sum(norm(x, SCALE, eps=0.5) ** 2))(X)
    want = jax.grad(lambda x: jnp.sum(plain_norm(x, SCALE, eps=0.5) ** 2))(X)
    np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)


def test_in_half_precision_the_cotangent_has_the_operands_dtype() -> None:
    x = X.astype(jnp.bfloat16)
    bars = bp.grad(lambda x, s: jnp.sum(norm(x, s)), (0, 1))(x, SCALE.astype(jnp.float32))
    assert [bar.dtype for bar in bars] == [jnp.bfloat16, jnp.float32]


def test_it_keeps_the_functions_name() -> None:
    assert norm.__name__ == "_norm_forward"


def identity(x: Any) -> Any:
    return x


BAD = {
    "no arrow": ("x", {}, 'has no "->"'),
    "not an operand": ("x -> y", {"z": lambda y_bar: y_bar}, "'z' is not an operand"),
    "unknown need": ("x -> y", {"x": lambda y_bar, w: w}, "'w'"),
    "starred": ("*xs -> y", {}, "fixed number of operands"),
}


@pytest.mark.parametrize("name", BAD)
def test_declaration_that_cannot_be(name: str) -> None:
    signature, pullbacks, text = BAD[name]
    with pytest.raises(RuleError, match="identity") as caught:
        bp.operation(signature, identity, **pullbacks)
    assert text in str(caught.value)


def test_wrong_number_of_operands() -> None:
    with pytest.raises(TypeError, match=r"(?s)takes 2 operands.*got:.*1.*x, scale -> y"):
        norm(X)


@pytest.mark.parametrize("grad", GRADS)
def test_cotangent_of_the_wrong_shape(grad: str) -> None:
    cut = bp.operation("x -> y", identity, x=lambda y_bar: y_bar[:2])
    with pytest.raises(RuleError, match=r"(?s)identity.*'x'.*wrong shape.*f64\[2\].*f64\[3\]"):
        GRADS[grad](lambda x: jnp.sum(cut(x)))(SCALE)


@pytest.mark.parametrize("grad", GRADS)
def test_cotangent_that_is_no_array(grad: str) -> None:
    text = bp.operation("x -> y", identity, x=lambda y_bar: "text")
    with pytest.raises(RuleError, match="identity"):
        GRADS[grad](lambda x: jnp.sum(text(x)))(SCALE)


def test_a_wrong_pullback_would_be_noticed() -> None:
    wrong = bp.operation("x -> y", jnp.sin, x=lambda y_bar, x: y_bar * jnp.cos(x) * (1 + 1e-9))
    with pytest.raises(AssertionError):
        same(bp.grad(as_scalar(wrong))(SCALE), jax.grad(as_scalar(jnp.sin))(SCALE))


def test_a_pullback_may_take_all_parameters() -> None:
    line = bp.operation(
        "x -> y", lambda x, *, by, plus: by * x + plus, x=lambda y_bar, **line: y_bar * line["by"]
    )
    assert bp.grad(lambda x: line(x, by=3.0, plus=1.0))(2.0) == 3.0
