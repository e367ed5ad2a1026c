"""What stands in the circle of an operation: ``+``, ``∗−1``, ``1/x``, ``exp``, ``σ``.

>>> import jax.numpy as jnp, functional_bp as bp
>>> graph = bp.trace(lambda x: 1 / (1 + jnp.exp(-x)), 0.5)
>>> from functional_bp.explain.pictures.typeset import plain
>>> [plain(symbol(e, {i: v.name for i, v in enumerate(e.inputs) if v.kind == "literal"}))
...  for e in graph]
['∗−1', 'exp', '+1.0', '1.0/x']
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from functional_bp.explain.numbers import format_number, format_shape
from functional_bp.explain.pictures.typeset import Line, Run, greek, roman, typeset_name
from functional_bp.graph.parts import Equation

X = Run("x", "italic")
SQUARE: Line = (X, Run("2", "roman", 1))

# Operations whose sign is not their name.
SIGNS: Mapping[str, Line] = {
    "add": roman("+"), "add_any": roman("+"), "sub": roman("−"), "mul": roman("∗"),
    "div": roman("/"), "neg": roman("∗−1"), "dot_general": roman("×"), "square": SQUARE,
    "sqrt": (Run("√"), X), "rsqrt": (Run("1/√"), X), "logistic": (Run("σ", "italic"),),
    "abs": (Run("|"), X, Run("|")), "reduce_sum": roman("Σ"), "reduce_prod": roman("∏"),
    "reduce_max": roman("max"), "reduce_min": roman("min"), "cumsum": roman("cumsum"),
    "transpose": (X, Run("T", "roman", 1)), "select_n": roman("where"), "eq": roman("="),
    "ne": roman("≠"), "lt": roman("<"), "le": roman("≤"), "gt": roman(">"), "ge": roman("≥"),
    "and": roman("∧"), "or": roman("∨"), "not": roman("¬"), "pow": (X, Run("y", "italic", 1)),
    "exp2": (Run("2"), Run("x", "italic", 1)), "log1p": (Run("log(1+"), X, Run(")")),
    "expm1": (Run("e"), Run("x", "italic", 1), Run("−1")), "concatenate": roman("concat"),
    "conv_general_dilated": roman("conv"), "gather": roman("take"), "dynamic_slice": roman("slice"),
    "dynamic_update_slice": roman("update"), "convert_element_type": roman("cast"),
    "broadcast_in_dim": roman("broadcast"), "stop_gradient": roman("stop"), "rev": roman("flip"),
    "custom_linear_solve": roman("solve"), "reduce_window_sum": roman("Σ window"),
    "reduce_window_max": roman("max pool"), "square_root": (Run("√"), X),
}  # fmt: skip
FUNCTIONS = {"sigmoid": "σ", "logistic": "σ", "loss": "ℓ", "l": "ℓ"}
COMMUTATIVE = {"add": "+", "add_any": "+", "mul": "∗", "max": "max", "min": "min"}


def symbol(equation: Equation, fixed: Mapping[int, str]) -> Line:
    """The sign of an equation's operation.

    Args:
        equation: one operation.
        fixed: the operands that are constants, as text; they are part of the sign.
    """
    name, params = equation.operation, equation.eqn.params
    if len(fixed) == 1 and len(equation.inputs) == 2:
        with_constant = _binary(name, fixed)
        if with_constant:
            return with_constant
    if name == "integer_pow":
        return power(params["y"])
    if name == "slice":
        return roman(_slice(equation))
    if name == "scan":
        length = Run(f" × {params['length']}")
        return (*(function_sign(equation.label) if equation.label else roman("scan")), length)
    if name == "reshape":
        return roman(f"reshape {format_shape(equation.outputs[0].shape)}")
    if equation.label:
        return function_sign(equation.label)
    return SIGNS.get(name) or roman(name.replace("_", " "))


def function_sign(name: str) -> Line:
    """The name of a person's function: a letter for the usual ones, ``l2`` is ℓ₂."""
    match = re.fullmatch(r"([^\W\d_]+)_?(\d*)", name)
    base, number = (match[1], match[2]) if match else (name, "")
    letter = FUNCTIONS.get(base) or greek(base) or (base if len(base) == 1 else None)
    if letter is None:
        return typeset_name(name, face="roman") if number else roman(name)
    return (Run(letter, "italic"), *((Run(number, "roman", -1),) if number else ()))


def power(exponent: int) -> Line:
    """x², 1/x, 1/x³."""
    if exponent == -1:
        return (Run("1/"), X)
    above = Run(str(abs(exponent)), "roman", 1)
    return (Run("1/"), X, above) if exponent < 0 else (X, above)


def constant(value: object) -> str:
    """A constant for a sign: 1, −1, 0.05; its shape where its entries differ."""
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        return f"[{format_shape(array.shape)}]"
    entry = array.reshape(-1)[:1]
    if not entry.size or not np.all(array == entry):
        return f"[{format_shape(array.shape)}]"
    (one,) = entry.tolist()
    if isinstance(one, float) and np.isfinite(one):
        shown = f"{one:.4g}"
        return (shown if "e" not in shown else format_number(one)).replace("-", "−")
    return format_number(one)


def _binary(name: str, fixed: Mapping[int, str]) -> Line | None:
    ((place, number),) = fixed.items()
    if name in COMMUTATIVE:
        if COMMUTATIVE[name] == "+" and number.startswith("−"):
            return roman(f"−{number[1:]}")
        space = " " if name in ("max", "min") else ""
        return roman(f"{COMMUTATIVE[name]}{space}{number}")
    if name == "sub":
        return roman(f"−{number}") if place == 1 else (Run(f"{number}−"), X)
    if name == "div":
        return roman(f"/{number}") if place == 1 else (Run(f"{number}/"), X)
    if name == "pow":
        power_run = Run(number, "roman", 1) if place == 1 else Run("x", "italic", 1)
        return (X if place == 1 else Run(number), power_run)
    if name in ("eq", "ne", "lt", "le", "gt", "ge"):
        sign = SIGNS[name][0].text
        return roman(f"{sign}{number}") if place == 1 else roman(f"{number}{sign}")
    return None


def _slice(equation: Equation) -> str:
    params = equation.eqn.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    parts = []
    for size, start, end, stride in zip(
        equation.inputs[0].shape, params["start_indices"], params["limit_indices"], strides
    ):
        if end - start == 1:
            parts.append(str(start))
            continue
        text = f"{start or ''}:{'' if end == size else end}"
        parts.append(text + (f":{stride}" if stride != 1 else ""))
    return f"[{','.join(parts)}]"
