"""Operations have signs, and names are set as a book prints them.

In the circle of an operation stand ``+``, ``∗−1``, ``1/x``, ``exp``, ``σ``; ``params['W1']`` is W₁.

>>> import jax.numpy as jnp, functional_bp as bp
>>> graph = bp.trace(lambda x: 1 / (1 + jnp.exp(-x)), 0.5)
>>> [plain(symbol(e, {i: v.name for i, v in enumerate(e.inputs) if v.kind == "literal"}))
...  for e in graph]
['∗−1', 'exp', '+1.0', '1.0/x']
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from functional_bp.explanation.numbers import format_number, format_shape, format_slices
from functional_bp.graph.graph import Equation

Face = Literal["roman", "italic", "bold"]
ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307"}
SCRIPT_SIZE = 0.7  # of a sub- or superscript, relative to its line
BOLD = 1.12  # how much wider bold letters are
SHORT = 3  # letters of a name that can carry a subscript

# Advance widths in hundredths of the size, those of DejaVu Serif rounded up: the widest of the
# fonts that a viewer may put in place of Times. What stands in no row is as wide as a capital.
_ROWS = {
    0: "\u0302\u0303\u0304\u0307", 30: "'", 35: " ,-./:;\\ijl|·", 40: "()I[]f", 45: "!Jt²",
    50: '"*_`r‖', 55: "?sz⁻", 60: "acevxyℓ", 65: "$0123456789bdghknopqu{}√θ", 70: "FLPSTYZ∗σα",
    75: "ABEKVXΣφ", 80: "CGR∏", 85: "#+<=>DOQU^~−×→∞", 90: "&HNw", 95: "m", 100: "%@…", 105: "MW",
}  # fmt: skip
WIDTHS = {letter: width / 100 for width, row in _ROWS.items() for letter in row}
WIDEST = {"W": 1.0, "F": 1.0}  # East Asian characters fill a square


class TextRun(NamedTuple):
    """A run is a piece of a line; ``script`` is −1 for a subscript, 1 for a superscript."""

    text: str
    face: Face = "roman"
    script: int = 0


Line = tuple[TextRun, ...]


def plain(line: Line) -> str:
    """Return the line as ordinary text, scripts marked as TeX does."""
    return "".join({0: "", -1: "_", 1: "^"}[run.script] + run.text for run in line)


def roman(text: str) -> Line:
    """Return a line of upright letters."""
    return (TextRun(text),)


def measure(line: Line, size: float) -> float:
    """Say how wide the line is at most, in points and halves of them."""
    width = 0.0
    for text, face, script in line:
        scale = (SCRIPT_SIZE if script else 1.0) * (BOLD if face == "bold" else 1.0)
        width += scale * sum(map(_advance, text))
    return math.ceil(2 * width * size - 1e-6) / 2  # alike, however a platform sums


def _advance(letter: str) -> float:
    known = WIDTHS.get(letter)
    return known or WIDEST.get(unicodedata.east_asian_width(letter), 0.85) if known != 0 else 0.0


def greek(word: str) -> str | None:
    """Return the letter that the word names, None if it names none."""
    case = "CAPITAL" if word[:1].isupper() else "SMALL"
    spelled = word.lower().replace("lambda", "lamda").upper()
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {spelled}")
    except KeyError:
        return None


def typeset_name(name: str, is_array: bool = False, face: Face | None = None) -> Line:
    """Set a name as mathematics: italic, arrays bold, or in a face; numbers and ``_t`` below.

    >>> plain(typeset_name("W1")), plain(typeset_name("alpha_t")), plain(typeset_name("x_hat"))
    ('W_1', 'α_t', 'x̂')
    """
    base, *rest = name.split("_")
    match = re.fullmatch(r"([^\W\d]+)(\d+)", base)
    if match:
        base, rest = match[1], [match[2], *rest]
    letter = greek(base) if len(base) > 1 else base or None
    word = letter or base
    if len(word) > SHORT and not all(part.isdigit() for part in rest) or "" in (word, *rest):
        return (TextRun(name, face or "italic"),)
    if len(word) == 1 and rest and rest[0] in ACCENTS:
        word, rest = unicodedata.normalize("NFC", word + ACCENTS[rest[0]]), rest[1:]
    face = face or ("bold" if is_array and len(base) <= SHORT or letter and is_array else "italic")
    line = [TextRun(word, face)]
    if rest:
        below = ",".join((greek(part) if len(part) > 1 else None) or part for part in rest)
        line.append(TextRun(below, "roman" if len(below) > 1 or below.isdigit() else "italic", -1))
    return tuple(line)


def typeset_paths(paths: Mapping[str, bool]) -> dict[str, Line]:
    """Set the names of arguments and places in pytrees, as short as they can be told apart.

    Each path comes with whether it is that of an array.

    >>> paths = ["params['layers'][0]['W']", "params['layers'][1]['W']", "xs[2]", "rate"]
    >>> [plain(line) for line in typeset_paths({path: False for path in paths}).values()]
    ['W^(0)', 'W^(1)', 'xs_2', 'rate']
    """
    options = {path: _shortenings(path, is_array) for path, is_array in paths.items()}
    count = Counter(plain(line) for lines in options.values() for line in lines)
    return {
        path: next((line for line in lines if count[plain(line)] == 1), lines[-1])
        for path, lines in options.items()
    }


_STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.?(\w+)|\[([^\]]*)\]")


def _shortenings(path: str, is_array: bool) -> list[Line]:
    """The name of the last step, then with ever more of the way to it."""
    steps = [next(filter(None, match.groups()), "") for match in _STEP.finditer(path)]
    named = [i for i, step in enumerate(steps) if not step.isdigit()] or [0]
    last = named[-1]
    base = typeset_name(steps[last], is_array) if steps else (TextRun(path, "italic"),)
    after = ",".join(steps[last + 1 :])
    if after:
        base = (*base, TextRun(after, "roman", -1))
    lines = [base]
    for start in range(last - 1, -1, -1):
        numbers = ",".join(step for step in steps[start:last] if step.isdigit())
        above = (TextRun(f"({numbers})", "roman", 1),) if numbers else ()
        words = ".".join(step for step in steps[start:last] if not step.isdigit())
        lines.append((*((TextRun(f"{words}."),) if words else ()), *base, *above))
    return lines


X = TextRun("x", "italic")
SQUARE: Line = (X, TextRun("2", "roman", 1))

# Operations whose sign is not their name.
SIGNS: Mapping[str, Line] = {
    "add": roman("+"), "add_any": roman("+"), "sub": roman("−"), "mul": roman("∗"),
    "div": roman("/"), "neg": roman("∗−1"), "dot_general": roman("×"), "square": SQUARE,
    "sqrt": (TextRun("√"), X), "rsqrt": (TextRun("1/√"), X), "logistic": (TextRun("σ", "italic"),),
    "abs": (TextRun("|"), X, TextRun("|")), "reduce_sum": roman("Σ"), "reduce_prod": roman("∏"),
    "reduce_max": roman("max"), "reduce_min": roman("min"), "cumsum": roman("cumsum"),
    "transpose": (X, TextRun("T", "roman", 1)), "select_n": roman("where"), "eq": roman("="),
    "ne": roman("≠"), "lt": roman("<"), "le": roman("≤"), "gt": roman(">"), "ge": roman("≥"),
    "and": roman("∧"), "or": roman("∨"), "not": roman("¬"), "pow": (X, TextRun("y", "italic", 1)),
    "exp2": (TextRun("2"), TextRun("x", "italic", 1)), "concatenate": roman("concat"),
    "expm1": (TextRun("e"), TextRun("x", "italic", 1), TextRun("−1")), "gather": roman("take"),
    "log1p": (TextRun("log(1+"), X, TextRun(")")), "conv_general_dilated": roman("conv"),
    "dynamic_slice": roman("slice"), "dynamic_update_slice": roman("update"),
    "convert_element_type": roman("cast"),
    "broadcast_in_dim": roman("broadcast"), "stop_gradient": roman("stop"), "rev": roman("flip"),
    "custom_linear_solve": roman("solve"), "reduce_window_sum": roman("Σ window"),
    "reduce_window_max": roman("max pool"),
}  # fmt: skip
FUNCTIONS = {"sigmoid": "σ", "logistic": "σ", "loss": "ℓ", "l": "ℓ"}
COMMUTATIVE = {"add": "+", "add_any": "+", "mul": "∗", "max": "max ", "min": "min "}


def symbol(equation: Equation, fixed: Mapping[int, str]) -> Line:
    """Return the sign of an equation's operation; ``fixed`` operands, constants, are part of it."""
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
        length = TextRun(f" × {params['length']}")
        return (*(function_sign(equation.label) if equation.label else roman("scan")), length)
    if name == "reshape":
        return roman(f"reshape {format_shape(equation.outputs[0].shape)}")
    if equation.label:
        return function_sign(equation.label)
    return SIGNS.get(name) or roman(name.replace("_", " "))


def function_sign(name: str) -> Line:
    """Return the name of a person's function: a letter for the usual ones, ``l2`` is ℓ₂."""
    match = re.fullmatch(r"([^\W\d_]+)_?(\d*)", name)
    base, number = (match[1], match[2]) if match else (name, "")
    letter = FUNCTIONS.get(base) or greek(base) or (base if len(base) == 1 else None)
    if letter is None:
        return typeset_name(name, face="roman") if number else roman(name)
    return (TextRun(letter, "italic"), *((TextRun(number, "roman", -1),) if number else ()))


def power(exponent: int) -> Line:
    """Return the sign of a power: x², 1/x, 1/x³."""
    if exponent == -1:
        return (TextRun("1/"), X)
    above = TextRun(str(abs(exponent)), "roman", 1)
    return (TextRun("1/"), X, above) if exponent < 0 else (X, above)


def constant(value: object) -> str:
    """Return a constant for a sign: 1, −1, 0.05; its shape where its entries differ."""
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
    is_right = place == 1
    if name in ("add", "add_any") and number.startswith("−"):
        return roman(number)
    if name in COMMUTATIVE:
        return roman(f"{COMMUTATIVE[name]}{number}")
    if name == "pow":
        base, exponent = (X, TextRun(number)) if is_right else (TextRun(number), X)
        return (base, exponent._replace(script=1))
    if name in ("sub", "div"):
        sign = SIGNS[name][0].text
        return roman(f"{sign}{number}") if is_right else (TextRun(f"{number}{sign}"), X)
    if name in ("eq", "ne", "lt", "le", "gt", "ge"):
        sign = SIGNS[name][0].text
        return roman(f"{sign}{number}" if is_right else f"{number}{sign}")
    return None


def _slice(equation: Equation) -> str:
    params = equation.eqn.params
    parts = [
        str(start) if stop - start == 1 else text
        for start, stop, text in zip(
            params["start_indices"],
            params["limit_indices"],
            format_slices(equation.inputs[0].shape, params),
        )
    ]
    return f"[{','.join(parts)}]"
