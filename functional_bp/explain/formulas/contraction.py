"""Products with named axes, as matrices where they are: z_ac = Σ_b x_ab y_bc is z = x y.

>>> from functional_bp.explain.formulas.expression import Symbol
>>> from functional_bp.explain.formulas.unicode import written
>>> z_bar, w = Symbol("z", bar=True), Symbol("W")
>>> print(written(contracted("ab", (z_bar, "ac"), (w, "bc"))[1]))
z̄ Wᵀ
"""

from __future__ import annotations

import re
from typing import NamedTuple

from functional_bp.explain.formulas.algebra import multiply
from functional_bp.explain.formulas.docstring import decomposed
from functional_bp.explain.formulas.expression import (
    Expression,
    Indexed,
    MatrixProduct,
    Symbol,
    Total,
    Transpose,
)
from functional_bp.explain.formulas.unicode import MACRON

Operand = tuple[Expression, str]  # what is multiplied, and one letter per axis
_TERM = rf"([a-z])({MACRON}?)_(\w+)"
_LINE = re.compile(rf"([a-z]){MACRON}_(\w+) = (?:Σ_\w+ )?{_TERM} {_TERM}")


class Contraction(NamedTuple):
    """A formula line like x̄_bfc = Σ_g z̄_bfg y_bgc: which cotangent is a product of which two."""

    operand: str
    left: Symbol
    right: Symbol


def parse(line: str) -> Contraction | None:
    """The contraction that a docstring's formula line states; None if it states another thing."""
    found = _LINE.fullmatch(decomposed(line))
    if found is None:
        return None
    operand, _, left, left_bar, _, right, right_bar, _ = found.groups()
    return Contraction(operand, Symbol(left, bool(left_bar)), Symbol(right, bool(right_bar)))


def contracted(out: str, first: Operand, second: Operand) -> tuple[str, Expression]:
    """The product of two arrays, summed over the axes that ``out`` does not have.

    Returns:
        The letters that the left-hand side needs ("" in the notation of matrices), and the
        product: of matrices and column vectors where it is one, else with a letter per axis.
    """
    if "" in (first[1], second[1]) and out == first[1] + second[1]:
        return "", multiply(first[0], second[0])
    for left, right in ((first, second), (second, first)):
        product = _matrices(out, left, right)
        if product is not None:
            return "", product
    letters = dict.fromkeys(first[1] + second[1])
    over = "".join(c for c in letters if c not in out)
    factors = tuple(Indexed(symbol, axes) if axes else symbol for symbol, axes in (first, second))
    body = MatrixProduct(factors)
    return out, Total(over, body) if over else body


def _matrices(out: str, left: Operand, right: Operand) -> Expression | None:
    """left · right, each transposed if need be; None where that is not the product."""
    (a, a_axes), (b, b_axes) = left, right
    if not a_axes or not b_axes or max(len(a_axes), len(b_axes), len(out)) > 2:
        return None
    inner = [c for c in a_axes if c in b_axes]
    if len(inner) > 1 or any(c in out for c in inner):
        return None
    summed = "".join(inner)
    rows, columns = a_axes.replace(summed, ""), b_axes.replace(summed, "")
    if out != rows + columns or len(set(a_axes)) < len(a_axes) or len(set(b_axes)) < len(b_axes):
        return None
    if not summed and (len(a_axes) > 1 or len(b_axes) > 1):
        return None
    if not rows and columns:  # a row vector times a matrix: the matrix comes first
        return None
    on_left = a if a_axes == rows + summed and (rows or not summed) else Transpose(a)
    on_right = b if b_axes == summed + columns and summed else Transpose(b)
    return MatrixProduct((on_left, on_right))
