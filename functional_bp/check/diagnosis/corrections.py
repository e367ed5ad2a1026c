"""A formula for what a cotangent lacks, as a correction of the line that makes it.

The numbers tell true − claimed as a formula, verified on fresh samples; added to the expression
that is returned, it makes the gradient right.
"""

from __future__ import annotations

import ast
import re

from functional_bp.check.diagnosis.lines import cotangent_as_written
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.findings import Repair
from functional_bp.check.subject import Disagreement

VERIFIED = 2  # fresh samples that a formula has to hold on
FUNCTIONS = ("exp", "log", "cos", "sin", "tanh", "sign", "sum", "mean", "max", "flip", "conj")
SYMBOLS = {"·": "*", "−": "-", "²": "**2", "³": "**3", "½": "0.5", "σ(": "jax.nn.sigmoid("}


def correction(disagreement: Disagreement, seen: Hypothesis) -> Repair | None:
    """The repair that a formula for true − claimed amounts to; None where there is none."""
    if not seen.added or not seen.residual_error < 1 or seen.fresh_samples < VERIFIED:
        return None
    subject = disagreement.subject
    written = cotangent_as_written(subject, subject.names[disagreement.argument])
    formula = in_python(seen.added)
    if written is None or formula is None:
        return None
    place, before = written
    sign = "" if formula.startswith("-") else "+ "
    after = ast.unparse(ast.parse(f"{before} {sign}{formula}", mode="eval"))
    return Repair(f"to the cotangent as it stands, add {seen.added}", place, before, after)


def in_python(formula: str) -> str | None:
    """A formula of a message as an expression of ``jax.numpy``; None where it is not one."""
    for symbol, text in SYMBOLS.items():
        formula = formula.replace(symbol, text)
    for name in FUNCTIONS:
        formula = re.sub(rf"(?<![\w.]){name}\(", f"jnp.{name}(", formula)
    try:
        return ast.unparse(ast.parse(formula.strip(), mode="eval"))
    except SyntaxError:
        return None
