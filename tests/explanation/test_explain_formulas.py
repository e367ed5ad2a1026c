"""Formulas: read from source text, put in one form, named, and written for a graph's equations."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive

import functional_bp as bp
from functional_bp.explanation.formulas import writing
from functional_bp.explanation.formulas.equations import forward, reverse, short_names, symbols
from functional_bp.explanation.formulas.expression import (
    ONE,
    Application,
    Comparison,
    MatrixProduct,
    Symbol,
    Transpose,
    add,
    choose,
    divide,
    multiply,
    negate,
    number,
    opposite,
    power,
    subtract,
    walk,
)
from functional_bp.explanation.formulas.formula import (
    Formula,
    contracted,
    formula,
    formula_line,
    parse,
    renamed,
)
from functional_bp.explanation.formulas.reading import UnreadableError, evaluate, read

X, Y, W = Symbol("x"), Symbol("y"), Symbol("W")
Y_BAR = Symbol("y", bar=True)


# reading


def written(function: Any, *names: str, **static: Any) -> str:
    arguments = {n: Symbol(n[:-4], bar=True) if n.endswith("_bar") else Symbol(n) for n in names}
    return writing.written(read(function, arguments, static))


def half_and_full(y_bar: Any, x: Any) -> Any:
    if y_bar.dtype.itemsize == 2:
        return lax.mul(lax.div(y_bar, x), lax.div(x, x))
    return lax.mul(y_bar, lax.integer_pow(x, -1))


def doubled(x: Any) -> Any:
    two = np.asarray(2, x.dtype)
    return lax.mul(two, x)


def with_loop(y_bar: Any, x: Any) -> Any:
    for _ in range(3):
        y_bar = y_bar * x
    return y_bar


def test_reading() -> None:
    pair = ("y_bar", "x")
    assert written(lambda y_bar, x: y_bar * 2 * x, *pair) == "ȳ · 2 x"
    assert written(lambda y_bar, x: 3 * y_bar * x * x, *pair) == "ȳ · 3 x²"
    assert written(lambda y_bar, x: -y_bar / (1 + x**2), *pair) == "−ȳ / (1 + x²)"
    assert written(lambda y_bar, x: y_bar @ x.T, *pair) == "ȳ xᵀ"
    assert written(lambda y_bar, x: y_bar * jnp.cos(x).astype(x.dtype), *pair) == "ȳ · cos x"
    assert written(lambda y_bar, x: lax.mul(y_bar, doubled(x)), *pair) == "ȳ · 2 x"
    assert written(half_and_full, *pair) == "ȳ / x", "a branch for half precision is left out"
    assert written(lambda y_bar, x: jnp.where(x > 0, y_bar, 0.0), *pair) == "ȳ · [x > 0]"
    choice = written(lambda y_bar, x: y_bar if x > 0 else 2 * y_bar, *pair)
    assert choice == "ȳ where x > 0, else ȳ · 2"
    with pytest.raises(UnreadableError):
        written(with_loop, *pair)


def test_two_lambdas_on_a_line_are_told_apart() -> None:
    pair = (lambda y_bar, x: y_bar * x, lambda y_bar, x: y_bar / x)
    assert [written(f, "y_bar", "x") for f in pair] == ["ȳ · x", "ȳ / x"]


def test_known_parameters_decide_conditions_and_are_shown() -> None:
    def pull(y_bar: Any, x: Any, *, y: int) -> Any:
        if y == 1:
            return y_bar
        return y_bar * y * x ** (y - 1)

    names = ("y_bar", "x", "y")
    assert written(pull, *names, y=1) == "ȳ"
    assert written(pull, *names, y=3) == "ȳ · 3 x²"
    spread = bp.rules[lax.reduce_sum_p]
    assert str(formula(spread, "x")) == "x̄ = spread(ȳ, axes)"
    assert str(formula(spread, "x", static={"axes": (0, 1)})) == "x̄ = spread(ȳ, axes=(0, 1))"


def test_a_rule_of_ones_own() -> None:
    cube_p = Primitive("cube_of_this_test")
    try:
        rule = bp.rule(cube_p, "x -> y", x=lambda y_bar, x: 3 * y_bar * x * x)
        assert rule is not None and str(formula(rule, "x")) == "x̄ = ȳ · 3 x²"
        namespace: dict[str, Any] = {}
        exec("pull = lambda y_bar, x: 3 * y_bar", namespace)  # no source to be read
        rule = bp.rule(cube_p, "x -> y", x=namespace["pull"])
        assert rule is not None and str(formula(rule, "x")) == "x̄ = cube_of_this_test_x_bar(ȳ, x)"
    finally:
        bp.rules.remove(cube_p)


# notation


def test_precedence() -> None:
    total, difference = add(X, Y), subtract(X, Y)
    assert writing.written(multiply(total, W)) == "W (x + y)"
    assert writing.written(subtract(W, difference)) == "W − x + y"
    assert writing.written(divide(X, total)) == "x / (x + y)"
    assert writing.written(power(total, number(2))) == "(x + y)²"
    assert writing.written(power(negate(X), number(3))) == "−x³"
    assert writing.written(power(X, subtract(Y, ONE))) == "x^(y − 1)"
    assert writing.written(Transpose(total)) == "(x + y)ᵀ"
    assert writing.written(MatrixProduct((total, W))) == "(x + y) W"
    assert writing.written(Application("cos", (total,), known=True)) == "cos(x + y)"
    assert writing.written(Application("√", (total,), known=True)) == "√(x + y)"
    assert writing.written(multiply(X, Application("cos", (Y,), known=True))) == "x cos y"
    assert writing.written(multiply(Symbol("loss"), total)) == "loss · (x + y)"
    assert writing.written(divide(ONE, multiply(number(2), X))) == "1 / (2 x)"


def test_one_form() -> None:
    assert multiply(X, divide(ONE, X)) == ONE
    assert multiply(number(Fraction(1, 3)), X, X) == divide(power(X, number(2)), number(3))
    assert add(X, negate(X)) != X and add(X, number(0)) == X
    assert writing.written(add(multiply(Y_BAR, X), multiply(Y_BAR, Y))) == "ȳ · (x + y)"
    assert choose(Comparison(X, "<", Y), X, X) == X
    assert opposite(Comparison(X, "<", Y)) == Comparison(X, "≥", Y)
    assert opposite(opposite(X)) == X
    assert writing.written(divide(X, number(0))) == "div(x, 0)"


def test_names() -> None:
    sin = bp.rules[lax.sin_p]
    assert str(formula(sin, "x", names={"x": "h", "y": "W1"})) == "h̄ = W̄₁ · cos h"
    assert str(formula(sin, "x", names={"y_bar": "p_bar"})) == "x̄ = p̄ · cos x"
    mul = bp.rules[lax.mul_p]
    assert str(formula(mul, "x", names={"x": "y", "y": "x"})) == "ȳ = z̄ · x", "all at once"
    assert str(formula(mul, "x", names={"y": number(2)})) == "x̄ = z̄ · 2"
    assert writing.barred("loss") == "l\u0305o\u0305s\u0305s\u0305"
    line = renamed("x̄ = the part of ȳ where x stands, a cotangent of a", {"a": "b"}, {"x": "w̄"})
    assert line == "w̄ = the part of ȳ where x stands, a cotangent of b"


def test_formula_lines() -> None:
    line = "ȳ_bgc = Σ_f z̄_bfg x_bfc"
    assert formula_line(f"{line}.\n\nDerivation: …", "y") == line.replace("ȳ", "y\u0304")
    assert formula_line("y = Σ x ⇒ x̄ᵢ = ȳ for every i", "x").startswith("x\u0304ᵢ = ")
    assert formula_line("z̄ where chosen, else 0.", "x") == "x\u0304 = z̄ where chosen, else 0"
    assert formula_line("Reshape it.", "x") == ""


def test_short_names() -> None:
    assert short_names(["p['W']", "q['W']", "b"]) == ["p.W", "q.W", "b"]
    assert short_names(["m.layers[0].w", "m.layers[1].w"]) == ["layers[0].w", "layers[1].w"]


# matrices


@pytest.mark.parametrize(
    ("out", "x", "y", "expected"),
    [
        ("ac", "ab", "bc", "x y"), ("ac", "ba", "bc", "xᵀ y"), ("ac", "ab", "cb", "x yᵀ"),
        ("ca", "ab", "bc", "yᵀ xᵀ"), ("a", "ab", "b", "x y"), ("b", "a", "ab", "yᵀ x"),
        ("", "a", "a", "xᵀ y"), ("ab", "a", "b", "x yᵀ"), ("ba", "a", "b", "y xᵀ"),
        ("abd", "abc", "cd", "Σ_c x_abc y_cd"), ("abd", "abc", "acd", "Σ_c x_abc y_acd"),
    ],
)  # fmt: skip
def test_contractions_as_matrices(out: str, x: str, y: str, expected: str) -> None:
    letters, product = contracted(out, (X, x), (Y, y))
    assert writing.written(product) == expected and letters == (out if "Σ" in expected else "")
    if "Σ" in expected:
        return
    rng = np.random.default_rng(0)
    sizes = dict(zip("abc", (2, 3, 4)))
    a, b = (rng.normal(size=[sizes[c] for c in axes]) for axes in (x, y))
    column = lambda array: array if array.ndim > 1 else array[:, None]
    got = evaluate(product, {X: column(a), Y: column(b)})
    np.testing.assert_allclose(
        got.reshape([sizes[c] for c in out]), np.einsum(f"{x},{y}->{out}", a, b)
    )


def test_a_contraction_is_taken_from_the_docstring() -> None:
    found = parse("x̄_bfc = Σ_g z̄_bfg y_bgc")
    assert found == ("x", Symbol("z", bar=True), Symbol("y"))
    assert parse("x̄ = ȳ without the padding") is None


# equations of a graph


def both(fun: Any, *args: Any) -> tuple[list[str], list[str]]:
    explanation = bp.explain(fun, *args)
    known = symbols(explanation.graph)
    uses = sorted(explanation.shares, key=lambda use: (-use[0].index, use[1]))
    return (
        [str(forward(e, known)) for e in explanation.graph],
        [str(reverse(e, k, known)) for e, k in uses],
    )


def test_a_layer() -> None:
    def loss(params: Any, x: Any) -> Any:
        z = bp.name(params["W1"] @ x + params["b1"], "z")
        return jnp.sum(bp.name(jnp.tanh(z), "h") ** 2)

    params = {"W1": jnp.ones((2, 3)), "b1": jnp.ones(2)}
    ahead, back = both(loss, params, jnp.ones(3))
    assert ahead == ["a = W₁ x", "z = a + b₁", "h = tanh(z)", "b = h²", "result = Σ b"]
    assert back[2:] == ["z̄ = h̄ · (1 − h²)", "ā = z̄", "b̄₁ = z̄", "W̄₁ = ā xᵀ", "x̄ = W₁ᵀ ā"]
    assert back[1] == "h̄ = b̄ · 2 h"


def test_other_operations() -> None:
    def fun(xs: Any, t: Any) -> Any:
        a = jnp.concatenate([xs[:1], xs[1:].reshape(-1)])
        b = jnp.where(a > t, a, 2.0).T
        return jax.nn.relu(b).max() + lax.scan(lambda c, x: (c * x, c), t, a)[0]

    ahead, back = both(fun, jnp.array([1.0, 2.0, 3.0]), 1.5)
    assert "a = xs[:1]" in ahead and any(" = relu(" in line for line in ahead)
    assert any("where" in line for line in ahead) and any("scan(" in line for line in ahead)
    assert any("the part of" in line for line in back)
    assert any("Jᵀ" in line for line in back) and any("Adjoint recursion" in line for line in back)


def test_an_operation_with_its_authors_rule() -> None:
    author_p = Primitive("author_of_this_test")
    author_p.def_impl(lambda x: 2 * x)
    author_p.def_abstract_eval(lambda x: x)
    from jax.interpreters import ad, mlir

    ad.deflinear2(author_p, lambda y_bar, x: [2 * y_bar])
    mlir.register_lowering(author_p, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    _, back = both(lambda x: author_p.bind(x), 3.0)
    assert back == ["x̄ = author_of_this_test_vjp(r\u0305e\u0305s\u0305u\u0305l\u0305t\u0305)"]


def test_walk_visits_every_part() -> None:
    tree = add(multiply(X, Y), Application("f", (W,), (("key", X),)))
    assert {X, Y, W} <= set(walk(tree)) and isinstance(Formula(X, tree).text(), str)
