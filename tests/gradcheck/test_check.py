"""What can be checked: every form of a claim, right and wrong, and what judges it.

Each form goes through all stages once; where a test asks only who is judged by what, ``quick``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.errors import ClaimError
from functional_bp.gradcheck.check import check

X = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], np.float32)
W = np.array([[0.3, -0.2], [1.1, 0.4], [-0.6, 0.9]], np.float32)


def custom(forward: Callable, fwd: Callable, bwd: Callable, **options: Any) -> Any:
    made = jax.custom_vjp(forward, **options)
    made.defvjp(fwd, bwd)
    return made


def tanh_rule(sign: float) -> Any:
    def fwd(x):
        y = jnp.tanh(x)
        return y, y

    return custom(jnp.tanh, fwd, lambda y, y_bar: (sign * y_bar * (1 - y * y),))


def dense_forward(x, w):
    return x @ w, (x, w)


def dense_backward(kept, y_bar):
    x, w = kept
    return y_bar @ w.T, x.T @ y_bar


def test_a_custom_vjp_function_is_judged_by_its_body() -> None:
    right, wrong = check(tanh_rule(1.0), X), check(tanh_rule(-1.0), X)
    assert right.verdict == "right" and right.ok and not right.findings
    assert wrong.verdict == "wrong" and wrong.findings[0].argument == "x"
    checked = {row.checked: row for row in right.rows}
    assert checked["cotangent of x"].limit < 1e-12  # float64, though x is float32
    for stage in ("adjoint identity", "second order", "vmap", "scan", "remat", "sharded inputs",
                  "other inputs", "linear in the cotangent", "jit", "repeated calls",
                  "bfloat16 against float64"):  # fmt: skip
        assert checked[stage].outcome == "right", (stage, checked[stage])


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-6])
def test_a_factor_wrong_by_a_millionth_is_found(factor: float) -> None:
    report = check(tanh_rule(factor), X, quick=True)
    assert report.ok == (factor == 1.0)


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-5])
def test_without_a_reference_differences_judge(factor: float) -> None:
    report = check(tanh_rule(factor), X, reference=False, quick=True)
    assert report.ok == (factor == 1.0)
    assert report.settings["reference"] == "finite differences"


def test_a_custom_jvp_function() -> None:
    square = jax.custom_jvp(lambda x: x * x)
    square.defjvp(lambda primals, dots: (primals[0] ** 2, 2 * primals[0] * dots[0]))
    assert check(square, X).ok
    square.defjvp(lambda primals, dots: (primals[0] ** 2, 3 * primals[0] * dots[0]))
    assert not check(square, X).ok


@pytest.mark.parametrize(
    ("kind", "factor"),
    sampled(itertools.product(["custom_vjp", "custom_jvp", "called"], [2, 3]), 3),
)
def test_a_gradient_that_looks_at_values(kind: str, factor: int) -> None:
    """Python branches on them, so that each call has to run."""

    def kinked(x: Any) -> Any:
        return x * x if x > 0 else -x

    def slope(x: Any) -> Any:
        return factor * x if x > 0 else -1.0

    made: Any
    if kind == "custom_jvp":
        made = jax.custom_jvp(kinked)
        made.defjvp(lambda primals, dots: (kinked(*primals), dots[0] * slope(*primals)))
    else:
        made = jax.custom_vjp(kinked)
        made.defvjp(lambda x: (kinked(x), x), lambda x, bar: (bar * slope(x),))
    report = bp.check((lambda x: made(x) + 1.0) if kind == "called" else made, 2.0)
    assert report.ok == (factor == 2), report


def test_an_operation_and_a_rule() -> None:
    def softplus(slope: Callable) -> Any:
        return bp.operation("x -> y", lambda x: jnp.logaddexp(x, 0.0),
                            x=lambda y_bar, x: y_bar * slope(x))  # fmt: skip

    assert check(softplus(jax.nn.sigmoid), X).ok
    wrong = check(softplus(jnp.tanh), X, quick=True)
    assert not wrong.ok and wrong.findings[0].argument == "x"
    assert check(bp.rules[lax.sin_p], X).ok
    on_cases = check(bp.rules[lax.atan2_p], quick=True)
    assert on_cases.ok and on_cases.rows[0].checked.startswith("case 0: ")


def test_pairs_in_the_three_conventions() -> None:
    def layer_backward(dout, cache):
        return dense_backward(cache, dout)

    def product(x, w):
        return x @ w

    def product_backward(x, w, y_bar):
        return y_bar @ w.T, x.T @ y_bar

    assert check((dense_forward, dense_backward), X, W).ok
    assert check((dense_forward, layer_backward), X, W, quick=True).ok
    assert check((product, product_backward), X, W, quick=True).ok
    negated = (dense_forward, lambda kept, y_bar: dense_backward(kept, -y_bar))
    wrong = check(negated, X, W, quick=True)
    assert not wrong.ok


@pytest.mark.parametrize("sign", [1, -1])
def test_a_numpy_pair_is_judged_by_differences(sign: int) -> None:
    def forward(x, w):
        return np.asarray(x).dot(np.asarray(w)), (np.asarray(x), np.asarray(w))

    def backward(kept, y_bar):
        x, w = kept
        w_bar = sign * x.T.dot(np.asarray(y_bar))
        return np.asarray(y_bar).dot(w.T), w_bar

    report = check((forward, backward), X, W)
    assert report.ok == (sign == 1)
    if sign == -1:
        finding = report.findings[0]
        assert finding.argument == "w" and finding.where is not None
        assert finding.where.text.startswith("w_bar = sign")


def loss(params, x):
    return jnp.mean(jnp.tanh(x @ params["W"] + params["b"]) ** 2)


PARAMS = {"W": W, "b": np.array([0.1, -0.2], np.float32)}


def test_a_gradient_function_against_its_loss() -> None:
    assert check(jax.grad(loss), PARAMS, X, of=loss).ok

    def forgets_the_mean(params, x):
        return jax.tree.map(lambda g: g * 4, jax.grad(loss)(params, x))

    wrong = check(forgets_the_mean, PARAMS, X, of=loss, quick=True)
    assert not wrong.ok and wrong.findings[0].argument.startswith("params['")


def test_numbers_on_paper() -> None:
    gradient = jax.grad(loss)(PARAMS, X)
    assert check(loss, PARAMS, X, claims={"W": gradient["W"]}).ok
    rounded = np.round(np.asarray(gradient["b"], np.float64), 3)
    assert check(loss, PARAMS, X, claims={"b": rounded}).ok
    wrong = check(loss, PARAMS, X, claims={"W": gradient["W"], "b": 2 * gradient["b"]})
    assert [f.argument for f in wrong.findings] == ["params['b']"]
    for claim, kind in ((2 * rounded, "factor"), (-gradient["b"], "sign")):
        (finding,) = check(loss, PARAMS, X, claims={"b": claim}).findings
        assert finding.kind == kind and finding.message.startswith("claimed = ")
    single = np.round(np.asarray(gradient["b"], np.float32), 3)
    assert check(loss, PARAMS, X, claims={"b": single}).ok
    with pytest.raises(ValueError, match=r"no value is called 'W9'[\s\S]*params\['W'\]"):
        check(loss, PARAMS, X, claims={"W9": 1.0})


def test_a_plain_function_is_judged_with_its_custom_rules_undone() -> None:
    wrong = tanh_rule(-1.0)
    assert check(lambda x: jnp.sum(jnp.sin(x)), X, quick=True).ok
    assert check(lambda x: jnp.sum(jax.nn.relu(x)), X).ok  # JAX's own rules are trusted
    assert not check(lambda x: jnp.sum(wrong(x)), X, quick=True).ok
    in_a_loop = lambda x: lax.scan(lambda c, row: (c, wrong(row)), 0.0, x)[1]
    assert not check(in_a_loop, X, quick=True).ok


def test_a_reference_in_jax_and_in_numpy() -> None:
    assert check(tanh_rule(1.0), X, reference=lambda x: jnp.sinh(x) / jnp.cosh(x)).ok
    assert check(tanh_rule(1.0), X, reference=np.tanh, quick=True).ok
    in_numpy = lambda x: np.tanh(np.asarray(x))
    assert not check(tanh_rule(2.0), X, reference=in_numpy, quick=True).ok
    other = check(tanh_rule(1.0), X, reference=jnp.sin)
    assert [f.kind for f in other.findings] == ["value"]
    with pytest.raises(TypeError, match="the reference broken cannot be called"):

        def broken(x):
            raise KeyError("nothing here")

        check(tanh_rule(1.0), X, reference=broken)


def test_a_wrong_reference_is_a_disagreement_of_witnesses() -> None:
    def wrong_gradient(x):  # the value of tanh, with half its derivative
        return 0.5 * jnp.tanh(x) + 0.5 * lax.stop_gradient(jnp.tanh(x))

    report = check(tanh_rule(1.0), X, reference=wrong_gradient)
    assert report.verdict == "inconclusive" and not report.findings
    assert "finite differences of the forward pass agree with the claim" in report.reasons[0]


def straight_through(factor: float) -> Any:
    return custom(lambda x: jnp.round(x), lambda x: (jnp.round(x), None),
                  lambda _, y_bar: (factor * y_bar,))  # fmt: skip


def test_a_gradient_that_is_false_on_purpose_is_held_to_its_declaration() -> None:
    inputs = np.array([0.3, 1.2, -2.7], np.float32)
    assert not check(straight_through(1.0), inputs, quick=True).ok
    assert check(straight_through(1.0), inputs, expect="straight-through").ok
    broken = check(straight_through(2.0), inputs, expect="straight-through")
    assert [f.kind for f in broken.findings] == ["declaration"]
    reversal = custom(lambda x: x, lambda x: (x, None), lambda _, y_bar: (-0.5 * y_bar,))
    assert check(reversal, inputs, expect=-0.5).ok
    assert not check(reversal, inputs, expect=-1, quick=True).ok
    assert check(reversal, inputs, expect=lambda x: -0.5 * x, quick=True).ok
    with pytest.raises(ValueError, match="straight-through"):
        check(reversal, inputs, expect="reversed")


def test_pytrees_integers_static_arguments_and_symbolic_zeros() -> None:
    def gather(table, index, power):
        return table["rows"][index] ** power

    def fwd(table, index, power):
        return gather(table, index, power), (table["rows"], index)

    def bwd(power, kept, y_bar):
        rows, index = kept
        bar = y_bar * power * rows[index] ** (power - 1)
        return {"rows": jnp.zeros_like(rows).at[index].add(bar)}, None

    made = custom(gather, fwd, bwd, nondiff_argnums=(2,))
    table = {"rows": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}
    assert check(made, table, np.array([0, 2, 2]), 2).ok

    def pair_fwd(x, y):
        return x.value * y.value, (x.value, y.value)

    product = jax.custom_vjp(lambda x, y: x * y)
    product.defvjp(pair_fwd, lambda kept, z_bar: (z_bar * kept[1], z_bar * kept[0]),
                   symbolic_zeros=True)  # fmt: skip
    assert check(product, X, X + 1, quick=True).ok


def test_defaults_keywords_and_jit_around_a_rule() -> None:
    @jax.custom_vjp
    def scaled(x, scale=3.0):
        return scale * jnp.sin(x)

    scaled.defvjp(lambda x, scale=3.0: (scale * jnp.sin(x), (x, scale)),
                  lambda kept, y_bar: (kept[1] * jnp.sin(kept[0]) * y_bar, None))  # fmt: skip
    for subject in (scaled, jax.jit(scaled), functools.partial(scaled, scale=2.0)):
        (finding,) = check(subject, X, quick=True).findings
        assert finding.argument == "x"  # the scale's None is not judged: nobody gave one
        assert finding.repair is not None and "cos" in finding.repair.after


def test_complex_arguments() -> None:
    def fwd(z):
        return z * z, z

    z = np.array([1 + 2j, -0.5 + 0.25j], np.complex64)
    assert check(custom(lambda z: z * z, fwd, lambda z, bar: (2 * z * bar,)), z).ok
    conjugated = custom(lambda z: z * z, fwd, lambda z, bar: (2 * z.conj() * bar,))
    assert not check(conjugated, z, quick=True).ok


def test_another_convention_at_a_kink_is_a_note() -> None:
    relu = custom(lambda x: jnp.maximum(x, 0), lambda x: (jnp.maximum(x, 0), x),
                  lambda x, y_bar: (jnp.where(x >= 0, y_bar, 0),))  # fmt: skip
    report = check(relu, np.array([1.0, -2.0, 0.0], np.float32))
    assert report.ok and "another convention" in report.notes[0]
    off = custom(lambda x: jnp.maximum(x, 0), lambda x: (jnp.maximum(x, 0), x),
                 lambda x, y_bar: (jnp.where(x >= 0, y_bar, 0.1 * y_bar),))  # fmt: skip
    assert not check(off, np.array([1.0, -2.0, 0.0], np.float32)).ok


def test_the_same_seed_gives_the_same_report() -> None:
    one, two = (check(tanh_rule(2.0), X, seed=3, quick=True) for _ in range(2))
    assert one.rows == two.rows
    assert one.findings[0].entries == two.findings[0].entries


def test_bad_input_is_refused_at_the_door() -> None:
    with pytest.raises(ClaimError, match="wants gradients by argument"):
        bp.check(lambda x: x * x, 2.0, claims=4.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ClaimError, match="bp.check cannot check this"):
        check(3)
    with pytest.raises(ClaimError) as refused:
        check(3)
    assert (refused.value.what, refused.value.got) == ("bp.check cannot check this", "int")
    assert "a pair (forward, backward)" in refused.value.expected and "of=" in refused.value.do
    with pytest.raises(ClaimError, match=r"cannot be called with the given arguments[\s\S]*got: "):
        check(tanh_rule(1.0), X, X)
    with pytest.raises(ClaimError, match="no argument is a real or complex array"):
        check(lambda x: x, np.arange(3))
    with pytest.raises(ClaimError, match="has no gradient[\\s\\S]*scalar"):
        check(jax.grad(loss), X, of=jnp.sin)
    with pytest.raises(ClaimError, match="returns something that is no gradient"):
        check(lambda x: (x, x, x), X, of=jnp.sum)
    with pytest.raises(ClaimError, match="forward function of a pair"):
        check((lambda x: x, lambda kept, y_bar: y_bar), X)
    with pytest.raises(ClaimError, match="call half.defvjp"):

        @jax.custom_vjp
        def half(x):
            return x / 2

        check(half, X)


def test_a_function_that_is_wired_to_float32_is_judged_there() -> None:
    def forward(x):
        start = jnp.zeros(3, jnp.float32)
        return lax.scan(lambda c, row: (c + row, None), start, x)[0]

    report = check(custom(forward, lambda x: (forward(x), x.shape), lambda shape, y_bar: (
        jnp.broadcast_to(y_bar, shape),)), X)  # fmt: skip
    assert report.ok and "judged in float32" in report.notes[0]


@pytest.mark.long
def test_gradient_functions_of_other_forms() -> None:
    assert check(jax.value_and_grad(loss), PARAMS, X, of=loss, quick=True).ok
    assert check(jax.grad(loss, (0, 1)), PARAMS, X, of=loss, quick=True).ok
    assert check(jax.grad(loss, 1), PARAMS, X, of=loss, argnums=1, quick=True).ok
