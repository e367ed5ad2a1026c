"""Every rule's formula has the value of the pullback, and is mathematics that TeX can set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled
from well_formed import check_latex

import functional_bp as bp
from functional_bp.cli.gallery import formulas
from functional_bp.engine.rule import Rule
from functional_bp.engine.sweeps import evaluate as run_equation
from functional_bp.explanation.formulas.expression import (
    ONE,
    ShapeOf,
    Symbol,
    add,
    divide,
    multiply,
    negate,
    number,
)
from functional_bp.explanation.formulas.formula import formula
from functional_bp.explanation.formulas.reading import NotNumericError, evaluate
from functional_bp.explanation.formulas.transliteration import escaped, latex_name, transliterated
from functional_bp.explanation.formulas.writing import LATEX, written

RULES = sorted(bp.rules.values(), key=lambda rule: rule.primitive.name)
X, Y = Symbol("x"), Symbol("y")
Y_BAR = Symbol("y", bar=True)


def name(rule: Rule) -> str:
    return rule.primitive.name


# every rule


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_every_rule_has_a_readable_formula(rule: Rule) -> None:
    found = formulas(rule)
    differentiated = rule.kind in ("pullback", "joint", "structural")
    assert bool(found) == differentiated
    for operand, made in found.items():
        text = str(made)
        assert 0 < len(text) <= 120 and "\n" not in text
        assert not any(word in text for word in ("lambda", "y_bar", "x_t", "object at", "None"))
        if made.left is not None:
            bar = written(Symbol(operand, bar=True))
            starred = any(n.text == operand and n.starred for n in rule.operands)
            assert starred or text.startswith(f"{bar} = ")
        check_latex(made.latex())


def cases() -> Iterator[Any]:
    """Every rule's cases, one operand at a time, where the formula is an expression."""
    for rule in RULES:
        for operand, made in formulas(rule).items() if rule.forward is None else ():
            starred = any(n.starred for n in (*rule.operands, *rule.outputs))
            if made.right is not None and not starred:
                for k, case in enumerate(rule.cases):
                    yield pytest.param(rule, operand, case, id=f"{name(rule)}-{operand}-{k}")


CASES = list(cases())


def test_most_table_rules_are_checked_by_value() -> None:
    checked = {id(param.values[0]) for param in CASES}
    assert len(checked) > 50


@pytest.mark.parametrize(("rule", "operand", "case"), sampled(CASES, 8))
def test_the_formula_has_the_value_of_the_pullback(rule: Rule, operand: str, case: Any) -> None:
    """The printed expression and the engine's cotangent agree at the rule's own test inputs."""
    args = [jnp.asarray(x) for x in case.draw(0)]
    graph = bp.trace(lambda *xs: case.function(*xs), *args)
    compared = 0
    for equation in graph:
        if equation.eqn.primitive is not rule.primitive or graph.constants:
            continue
        values = forward_values(graph, args)
        place = [n.text for n in rule.operands].index(operand)
        x = values[equation.inputs[place]]
        (out,) = equation.outputs
        if equation.inputs[place].kind == "literal" or not jnp.issubdtype(x.dtype, jnp.inexact):
            continue
        rng = np.random.default_rng(1)
        draw = rng.uniform(0.5, 1.5, out.shape)
        y_bar = jnp.asarray(draw, out.dtype)
        run = alone(equation, place, values)
        expected = bp.vjp(run, x)[1](y_bar)[0]
        if not np.array_equal(run(x), run(x), equal_nan=True):
            continue  # it draws anew each time
        tree = formula(rule, operand, static=dict(equation.eqn.params)).right
        assert tree is not None
        named = dict(zip([n.text for n in rule.operands], equation.inputs))
        named |= dict(zip([n.text for n in rule.outputs], equation.outputs))
        table: dict[Any, Any] = {Symbol(key): values[v] for key, v in named.items()}
        table |= {ShapeOf(key): jax.typeof(values[v]) for key, v in named.items()}
        table |= {Symbol(rule.outputs[0].text, bar=True): y_bar}
        got = np.asarray(evaluate(tree, table))
        if got.shape != np.shape(expected):  # the engine sums over what was broadcast
            axes = tuple(range(got.ndim - np.ndim(expected)))
            got = got.sum(axes)
        got = np.asarray(got, np.asarray(expected).dtype) if not np.iscomplexobj(got) else got
        if np.iscomplexobj(got) and not np.iscomplexobj(expected):
            got = got.real
        # 1e-9: some roundings of float64; a formula simplified by algebra rounds otherwise.
        wide = np.asarray(expected).dtype.itemsize >= 8
        np.testing.assert_allclose(got, expected, rtol=1e-9 if wide else 2e-2, atol=1e-12)
        compared += 1
    if not compared:
        pytest.skip("the case runs the operation inside another, or on literals alone")


def alone(equation: Any, place: int, values: dict[Any, Any]) -> Any:
    """The equation as a function of one of its operands."""

    def run(x: Any) -> Any:
        operands = [x if k == place else values[v] for k, v in enumerate(equation.inputs)]
        return run_equation(equation.eqn, operands)[0]

    return run


def forward_values(graph: Any, args: Any) -> dict[Any, Any]:
    values = dict(zip(graph.inputs, args))
    for equation in graph:
        for v in equation.inputs:
            if v.kind == "literal":
                values[v] = jnp.asarray(v.value, v.dtype)
        outs = run_equation(equation.eqn, [values[v] for v in equation.inputs])
        values.update(zip(equation.outputs, outs))
    return values


def test_a_wrong_formula_is_seen() -> None:
    """A planted fault in the tree changes its value, so that the comparison above can fail."""
    right = formula(bp.rules[lax.sqrt_p], "x").right
    assert right is not None
    values = {Y_BAR: 2.0, Y: 3.0}
    assert evaluate(right, values) == pytest.approx(1 / 3)
    assert evaluate(multiply(right, number(2)), values) == pytest.approx(2 / 3)
    with pytest.raises(NotNumericError):
        evaluate(right, {Y_BAR: 2.0})


# LaTeX


def test_latex() -> None:
    assert formula(bp.rules[lax.sin_p], "x").latex() == r"\bar{x} = \bar{y}\,\cos x"
    assert formula(bp.rules[lax.sqrt_p], "x").latex() == r"\bar{x} = \frac{\bar{y}}{2\,y}"
    assert written(divide(negate(Y_BAR), add(X, ONE)), LATEX) == r"-\frac{\bar{y}}{x + 1}"
    assert written(negate(add(X, Y)), LATEX) == r"-\left(x + y\right)"
    assert latex_name("W1", bar=True) == r"\bar{W}_{1}"
    assert escaped("50 % of a_b & ∂x") == r"50 \% of a\_b \& $\partial$x"
    line = transliterated("x̄ᵢ = ȳ [xᵢ = y] / #{j : xⱼ = y}")
    assert line == r"\bar{x}_{i} = \bar{y} [x_{i} = y] / \#\{j : x_{j} = y\}"


@pytest.mark.parametrize("text", ["{", "a}b", r"\left(x", "x^^2", "ȳ", "50 %"])
def test_the_check_of_latex_can_fail(text: str) -> None:
    with pytest.raises(AssertionError):
        check_latex(text)


def test_mathtext_reads_the_formulas() -> None:
    """matplotlib's reader of TeX takes every formula without words and cases."""
    mathtext = pytest.importorskip("matplotlib.mathtext", reason="of the extra pictures")
    parser = mathtext.MathTextParser("path")
    read_ = 0
    for rule in RULES:
        for made in formulas(rule).values():
            text = made.latex()
            if made.right is None or any(w in text for w in (r"\text", r"\begin", r"\mathtt")):
                continue
            parser.parse(f"${text}$")
            read_ += 1
    assert read_ > 50
