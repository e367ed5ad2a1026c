"""What a check finds is data: findings with place and repair, and the rows of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


class Word(StrEnum):
    """An enumeration whose members are texts to whoever compares, prints or writes them."""

    def __repr__(self) -> str:
        return repr(self.value)


class Verdict(Word):
    """A verdict is what a check says of a gradient."""

    RIGHT = "right"
    WRONG = "wrong"
    INCONCLUSIVE = "inconclusive"


class Outcome(Word):
    """An outcome is how one of the things that a check looks at came out."""

    RIGHT = "right"
    WRONG = "wrong"
    UNRESOLVED = "unresolved"
    NOTE = "note"
    LEFT_OUT = "left out"


class Kind(Word):
    """A kind is what a fault can look like; it equals its text, and has a ``meaning``."""

    meaning: str

    def __new__(cls, text: str, meaning: str) -> Kind:
        """The kind of a text, with what it means."""
        kind = str.__new__(cls, text)
        kind._value_, kind.meaning = text, meaning
        return kind

    VALUE = "value", "the forward value differs from the reference's"
    SIGN = "sign", "the sign is wrong"
    FACTOR = "factor", "a constant factor is wrong"
    MEAN_OR_SUM = "mean or sum", "a sum stands where a mean belongs, or the other way round"
    MISSING_SUM = "missing sum", "the sum over a broadcast axis is missing"
    AXIS = "axis", "an operation runs along the wrong axis"
    TRANSPOSE = "transpose", "a transpose is missing or too many"
    PERMUTATION = "permutation", "entries are right but in the wrong places"
    REVERSAL = "reversal", "an axis runs in the wrong direction"
    OFF_BY_ONE = "off by one", "entries are shifted by one place"
    MISSING_FACTOR = "missing factor", "a factor is missing or too many"
    MISSING_TERM = "missing term", "a term is missing: a path of the gradient was dropped"
    EXTRA_TERM = "extra term", "a term stands there that does not belong"
    WRONG_OPERAND = "wrong operand", "another value belongs here: a wrong or stale residual"
    WRONG_CONSTANT = "wrong constant", "a constant in the backward pass is wrong"
    WRONG_FUNCTION = "wrong function", "another function belongs here"
    REGION = "region", "wrong only in a part of the input space"
    REPEATS = "repeats", "wrong only where an index or a value repeats"
    BORDER = "border", "wrong only at the border"
    ENTRIES = "entries", "wrong only at certain entries"
    NOT_FINITE = "not finite", "not finite where the derivative is"
    COTANGENT_IGNORED = "cotangent ignored", "the cotangent of an output is not used"
    NOT_LINEAR = "not linear", "not linear in the cotangent"
    STRUCTURE = "structure", "the wrong number, structure or shape of cotangents"
    DTYPE = "dtype", "a cotangent in the wrong dtype"
    SECOND_ORDER = "second order", "first order right, second order wrong"
    HIDDEN_STATE = "hidden state", "the result depends on earlier calls"
    NOT_DETERMINISTIC = "not deterministic", "equal calls give different results"
    JIT = "jit", "jit changes the result"
    VMAP = "vmap", "vmap changes the result"
    SCAN = "scan", "scan changes the result"
    REMAT = "remat", "recomputation changes the result"
    SHARDING = "sharding", "sharded inputs change the result"
    PRECISION = "precision", "more rounding error than a careful implementation has"
    OVERFLOW = "overflow", "overflows or underflows where the derivative is representable"
    DECLARATION = "declaration", "not what was declared with expect="
    ERROR = "error", "raises an exception"
    WITNESSES = "witnesses", "the witnesses disagree with each other"
    OTHER = "other", "wrong, in no simple way"


@dataclass(frozen=True)
class Place:
    """A place is a line of the person's source code."""

    file: str
    line: int
    text: str = ""  # the source line, stripped

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Repair:
    """A repair is an edit that makes the gradient right, verified on fresh inputs.

    Attributes:
        message: what to change, in words ("should be a subtraction").
        place: the line that the edit is in.
        before: the expression as it stands, in the person's code.
        after: what to write instead.
    """

    message: str
    place: Place | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class WrongEntry:
    """A wrong entry of a cotangent, as it is claimed and as it should be."""

    index: tuple[int, ...]
    claimed: Any
    true: Any


# What only the searches of a diagnosis ask for: it is no part of a report.
_OF_THE_SEARCH: dict[str, Any] = {"repr": False, "compare": False}


@dataclass(frozen=True)
class Finding:
    """A finding is one thing that is wrong, from the search that finds it to the report.

    A search says what it found and how likely that is; the check adds the argument, the inputs and
    the numbers.

    Attributes:
        kind: a ``Kind``, or its text.
        message: what is wrong, in a sentence.
        argument: the argument's name, a pytree path; None where it concerns no single one.
        stage: the check that found it ("cotangent", "second order", "vmap", …).
        inputs: the class of inputs it was found on ("given", "large", "ties", …).
        where: the line of the backward pass that the fault stands in, if it could be told.
        repair: a verified edit, if one was found.
        explanations: everything that accounts for the disagreement, best first.
        also: further kinds that hold of it: where it is wrong beside what is wrong there, or what
            its numbers look like beside what to write.
        relative_error: ‖claimed − true‖ / ‖true‖ over the argument's entries.
        wrong_entries, size: how many entries are wrong, of how many.
        entries: the worst of them.
        example: the smallest failing input found, by argument name.
        cost: how much was assumed; of two explanations, the cheaper is likelier the fault.
        unexplained: the part of the disagreement that is left, between 0 and 1; NaN where the
            finding says where or how the claim is wrong, and not by how much.
        fresh_samples: how many samples besides the given one it was verified on.
        added: true − claimed as a sum of formulas, where that is what was found; each with whether
            it is subtracted.
        cut_short: whether the time was up before the searches were through.
    """

    kind: Kind
    message: str
    argument: str | None = None
    stage: str = "cotangent"
    inputs: str = "given"
    where: Place | None = None
    repair: Repair | None = None
    explanations: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    relative_error: float | None = None
    wrong_entries: int | None = None
    size: int | None = None
    entries: tuple[WrongEntry, ...] = ()
    example: Mapping[str, np.ndarray] = field(default_factory=dict)
    cost: float = field(default=1.0, **_OF_THE_SEARCH)
    unexplained: float = field(default=math.nan, **_OF_THE_SEARCH)
    fresh_samples: int = field(default=0, **_OF_THE_SEARCH)
    added: tuple[tuple[bool, Any], ...] = field(default=(), **_OF_THE_SEARCH)
    cut_short: bool = field(default=False, **_OF_THE_SEARCH)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "also", tuple(map(Kind, self.also)))


@dataclass(frozen=True)
class Row:
    """A row of the report's table says what was checked, and how it came out.

    Attributes:
        checked: what, as in "cotangent of x" or "vmap".
        outcome: how it came out.
        error, limit: the largest error relative to the limit's scale, where there are such.
        against: the witness, or the reason for "left out" and "unresolved".
    """

    checked: str
    outcome: Outcome
    error: float | None = None
    limit: float | None = None
    against: str = ""


def worst_entries(claimed: np.ndarray, true: np.ndarray, count: int = 4) -> tuple[WrongEntry, ...]:
    """Return the entries with the largest |claimed − true|; those not finite come first."""
    if claimed.shape != true.shape or claimed.size == 0:
        return ()
    gap = np.abs(claimed - true)
    gap = np.where(np.isfinite(gap), gap, np.inf)
    order: Sequence[int] = np.argsort(-gap.ravel(), kind="stable")[:count].tolist()
    places = [tuple(int(i) for i in np.unravel_index(k, gap.shape)) for k in order]
    return tuple(
        WrongEntry(at, claimed[at].item(), true[at].item()) for at in places if gap[at] > 0
    )


@dataclass(frozen=True)
class CheckResult:
    """A result is what a check found: the data of a report, whose fields ``Report`` describes."""

    name: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Tell whether the gradient is right: neither wrong nor inconclusive."""
        return self.verdict == Verdict.RIGHT
