"""Names as a book prints them: ``params['W1']`` is W₁, ``alpha_t`` is αₜ; how wide a line is.

>>> plain(typeset_name("W1")), plain(typeset_name("alpha_t")), plain(typeset_name("x_hat"))
('W_1', 'α_t', 'x̂')
>>> paths = ["params['layers'][0]['W']", "params['layers'][1]['W']", "xs[2]", "rate"]
>>> [plain(line) for line in typeset_paths({path: False for path in paths}).values()]
['W^(0)', 'W^(1)', 'xs_2', 'rate']
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

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


class Run(NamedTuple):
    """A piece of a line; ``script`` is −1 for a subscript, 1 for a superscript."""

    text: str
    face: Face = "roman"
    script: int = 0


Line = tuple[Run, ...]


def plain(line: Line) -> str:
    """The line as ordinary text, scripts marked as TeX does."""
    return "".join({0: "", -1: "_", 1: "^"}[run.script] + run.text for run in line)


def roman(text: str) -> Line:
    """A line of upright letters."""
    return (Run(text),)


def measure(line: Line, size: float) -> float:
    """How wide the line is at most, in points and halves of them."""
    width = 0.0
    for text, face, script in line:
        scale = (SCRIPT_SIZE if script else 1.0) * (BOLD if face == "bold" else 1.0)
        width += scale * sum(map(_advance, text))
    return math.ceil(2 * width * size - 1e-6) / 2  # alike, however a platform sums


def _advance(letter: str) -> float:
    known = WIDTHS.get(letter)
    return known or WIDEST.get(unicodedata.east_asian_width(letter), 0.85) if known != 0 else 0.0


def greek(word: str) -> str | None:
    """The letter that the word names, None if it names none."""
    case = "CAPITAL" if word[:1].isupper() else "SMALL"
    spelled = word.lower().replace("lambda", "lamda").upper()
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {spelled}")
    except KeyError:
        return None


def typeset_name(name: str, is_array: bool = False, face: Face | None = None) -> Line:
    """A Python name as mathematics: italic, arrays bold; digits and what follows ``_`` below.

    Args:
        name: an identifier.
        is_array: whether it names a vector, a matrix or more.
        face: the letters, where they are neither; of a function.
    """
    base, *rest = name.split("_")
    match = re.fullmatch(r"([^\W\d]+)(\d+)", base)
    if match:
        base, rest = match[1], [match[2], *rest]
    letter = greek(base) if len(base) > 1 else base or None
    word = letter or base
    if len(word) > SHORT and not all(part.isdigit() for part in rest) or "" in (word, *rest):
        return (Run(name, face or "italic"),)
    if len(word) == 1 and rest and rest[0] in ACCENTS:
        word, rest = unicodedata.normalize("NFC", word + ACCENTS[rest[0]]), rest[1:]
    face = face or ("bold" if is_array and len(base) <= SHORT or letter and is_array else "italic")
    line = [Run(word, face)]
    if rest:
        below = ",".join((greek(part) if len(part) > 1 else None) or part for part in rest)
        line.append(Run(below, "roman" if len(below) > 1 or below.isdigit() else "italic", -1))
    return tuple(line)


def typeset_paths(paths: Mapping[str, bool]) -> dict[str, Line]:
    """The names of arguments and places in pytrees, each as short as it can be told from others.

    Args:
        paths: whether it is an array, by path.
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
    base = typeset_name(steps[last], is_array) if steps else (Run(path, "italic"),)
    after = ",".join(steps[last + 1 :])
    if after:
        base = (*base, Run(after, "roman", -1))
    lines = [base]
    for start in range(last - 1, -1, -1):
        numbers = ",".join(step for step in steps[start:last] if step.isdigit())
        above = (Run(f"({numbers})", "roman", 1),) if numbers else ()
        words = ".".join(step for step in steps[start:last] if not step.isdigit())
        lines.append((*((Run(f"{words}."),) if words else ()), *base, *above))
    return lines
