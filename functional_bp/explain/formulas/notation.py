"""What operations are in mathematics: ``mul`` is a product, ``rsqrt`` is one over a root.

One table for both directions: an equation of a graph is written by its primitive's name, a pullback
by the names of the functions that it calls. No gradient stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from functional_bp.explain.formulas.algebra import (
    add,
    choose,
    divide,
    multiply,
    negate,
    opposite,
    power,
    subtract,
)
from functional_bp.explain.formulas.expression import (
    IMAGINARY,
    ONE,
    ZERO,
    Call,
    Comparison,
    Expression,
    Number,
)

Builder = Callable[..., Expression]
TWO = Number(Fraction(2))

# Functions that have a name in mathematics, by their names in jax.lax, jax.numpy and numpy.
FUNCTIONS = {
    "exp": "exp", "log": "ln", "sqrt": "√", "sin": "sin", "cos": "cos", "tan": "tan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "asinh": "arsinh", "acosh": "arcosh", "atanh": "artanh", "arcsin": "arcsin",
    "arccos": "arccos", "arctan": "arctan", "abs": "abs", "sign": "sign", "floor": "floor",
    "ceil": "ceil", "logistic": "σ", "sigmoid": "σ", "erf": "erf", "erfc": "erfc",
    "erf_inv": "erf⁻¹", "real": "Re", "imag": "Im", "conj": "conj", "max": "max", "min": "min",
    "lgamma": "ln Γ", "digamma": "ψ", "cbrt": "∛", "log2": "log₂", "atan2": "atan2",
    "maximum": "max", "minimum": "min", "reduce_max": "max", "reduce_min": "min",
}  # fmt: skip

# The same functions on numbers, to compare two formulas.
NUMERIC: dict[str, Callable[..., object]] = {
    "exp": np.exp, "ln": np.log, "√": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "arcsin": np.arcsin, "arccos": np.arccos,
    "arctan": np.arctan, "arsinh": np.arcsinh, "arcosh": np.arccosh, "artanh": np.arctanh,
    "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "Re": np.real,
    "Im": np.imag, "conj": np.conj, "σ": lambda x: 1 / (1 + np.exp(-x)), "log₂": np.log2,
    "∛": np.cbrt, "atan2": np.arctan2, "max": np.maximum, "min": np.minimum,
    "not": np.logical_not, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip


def compare(sign: str) -> Builder:
    """The builder of a comparison."""
    return lambda left, right: Comparison(left, sign, right)


def apply(name: str) -> Builder:
    """The builder of a call of a function with a name in mathematics."""
    return lambda *arguments: Call(name, arguments, known=True)


def root(x: Expression) -> Expression:
    """√x."""
    return Call("√", (x,), known=True)


def _select_n(which: Expression, *cases: Expression) -> Expression:
    if len(cases) == 1:
        return cases[0]
    if len(cases) == 2:  # the case 0 first
        return choose(which, cases[1], cases[0])
    return Call("select", (which, *cases))


def _difference_of_square(x: Expression) -> Expression:
    return subtract(ONE, power(x, TWO))


# By the name of the function or primitive.
OPERATORS: dict[str, Builder] = {
    "add": add, "add_any": add, "sub": subtract, "subtract": subtract, "mul": multiply,
    "multiply": multiply, "div": divide, "divide": divide, "true_divide": divide, "neg": negate,
    "negative": negate, "square": lambda x: power(x, TWO), "pow": power, "power": power,
    "float_power": power, "integer_pow": power, "reciprocal": lambda x: divide(ONE, x),
    "rsqrt": lambda x: divide(ONE, root(x)), "one_minus_square": _difference_of_square,
    "exp2": lambda x: power(TWO, x), "expm1": lambda x: subtract(apply("exp")(x), ONE),
    "log1p": lambda x: apply("ln")(add(ONE, x)),
    "complex": lambda x, y: add(x, multiply(y, IMAGINARY)),
    "eq": compare("="), "ne": compare("≠"), "lt": compare("<"), "le": compare("≤"),
    "gt": compare(">"), "ge": compare("≥"), "equal": compare("="), "greater": compare(">"),
    "less": compare("<"), "not": opposite, "bitwise_not": opposite, "logical_not": opposite,
    "and": apply("and"), "bitwise_and": apply("and"), "logical_and": apply("and"),
    "or": apply("or"), "bitwise_or": apply("or"), "logical_or": apply("or"),
    "select": choose, "where": choose, "select_n": _select_n,
    **{name: apply(sign) for name, sign in FUNCTIONS.items()},
}  # fmt: skip

# Functions of which the formula shows the first argument alone: they change dtype or place.
TRANSPARENT = {
    "convert_element_type", "asarray", "array", "stop_gradient", "astype", "copy", "stage",
    "float", "tuple", "list", "optimization_barrier", "name",
}  # fmt: skip
# Functions of an array's type, whose value does not depend on it.
FILLED: dict[str, Builder] = {
    "full_like": lambda x, value: value,
    "zeros_like": lambda x: ZERO,
    "ones_like": lambda x: ONE,
    "full": lambda shape, value: value,
}
