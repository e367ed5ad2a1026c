"""The exceptions are defined here, and this is the one place where their messages are built.

Every message says what failed in the user's words, what was got, what was expected, and what to do.
Each of these is also an attribute of the error, so that no program has to take its text apart.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE_FOLDER = f"{Path(__file__).parent}{os.sep}"
FLOAT0 = np.dtype([("float0", np.void, 0)])  # jax.dtypes.float0, without loading JAX
SHORT_DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "complex64": "c64", "complex128": "c128", "bool": "bool",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip


class Message(str):
    """A message is a text that knows the parts which ``compose`` made it of.

    Attributes:
        what: failed, in the user's words.
        where: it failed: the user's file and line, a folder, a path in a pytree.
        got: what was got.
        expected: what was expected.
        do: what to do about it.
    """

    what: str
    where: str
    got: str
    expected: str
    do: str
    _terms: tuple[str, dict[str, str]]

    def reworded(self, terms: Mapping[str, str]) -> Message:
        """Put other words for the arguments that ``do`` says to give.

        Args:
            terms: the words by the arguments' names, such as ``{"max_steps": "--max-steps N"}``;
                those of which the message does not speak are left alone.
        """
        do, known = self._terms
        ours = {name: terms.get(name, words) for name, words in known.items()}
        return compose(
            self.what, where=self.where, got=self.got, expected=self.expected, do=do, **ours
        )


def compose(
    what: str, *, got: str = "", expected: str = "", where: str = "", do: str = "", **terms: str
) -> Message:
    """Compose a message: what failed, where, what was got, what was expected, what to do.

    Args:
        what: failed.
        got: what was got.
        expected: what was expected.
        where: it failed.
        do: what to do; ``{max_steps}`` in it stands for the words ``max_steps=...`` given here.
        terms: what to do about an argument, by the argument's name. The command line has options
            in place of arguments, and puts its own words there (``Message.reworded``).
    """
    told = do
    for name, words in terms.items():
        told = told.replace(f"{{{name}}}", words)
    rows = [("at", where), ("got", got), ("expected", expected), ("to do", told)]
    text = "\n".join([what, *(f"  {label + ':':<10}{row}" for label, row in rows if row)])
    message = Message(text)
    message.what, message.where, message.got, message.expected = what, where, got, expected
    message.do, message._terms = told, (do, terms)
    return message


class BackpropError(Exception):
    """Every error that ``functional_bp`` raises by itself is one of these.

    Args:
        message: the whole text, as ``compose`` gives it, or what failed.
        parts: the others, as ``compose`` takes them.

    Attributes:
        message: the text, with its parts.
        what, where, got, expected, do: the parts; "" where there is nothing to say.
    """

    def __init__(self, message: str = "", **parts: str) -> None:
        self.message = message if isinstance(message, Message) else compose(message, **parts)
        super().__init__(self.message)
        self.what, self.where, self.do = self.message.what, self.message.where, self.message.do
        self.got, self.expected = self.message.got, self.message.expected

    __str__ = Exception.__str__  # a KeyError would show its message in quotes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message,), vars(self)


class MissingRuleError(BackpropError, NotImplementedError):
    """An operation on the way to a wanted gradient has no VJP rule."""


class RuleError(BackpropError, TypeError):
    """A rule is written wrongly, or returned the wrong shape, dtype or number of cotangents."""


class NotDifferentiableError(BackpropError, TypeError):
    """A gradient was asked for where none is defined: non-scalar output, integer input."""


class CotangentError(BackpropError, ValueError, TypeError):
    """A cotangent or tangent's structure, shape or dtype does not match what it belongs to.

    A ``ValueError`` as of ``jax.vjp``, and a ``TypeError`` as of ``jax.jvp``.
    """


class ArgumentsError(BackpropError, TypeError, ValueError):
    """``argnums`` names an argument that was not given, or one twice.

    JAX raises a ``TypeError`` or a ``ValueError``, depending on the transform.
    """


class UnboundedLoopError(MissingRuleError, ValueError):
    """A loop of unknown length is differentiated in reverse without a bound (``max_steps``)."""


class StrictError(BackpropError):
    """``strict=True`` met an operation whose gradient would come from a rule that is not ours."""


class StepBoundError(BackpropError, RuntimeError):
    """A loop took more steps than the bound ``max_steps`` that was given for it."""


class TrainingError(BackpropError, ValueError):
    """Something that training was given does not fit: data, a loss, an option, a state."""


class NonFiniteError(BackpropError, ArithmeticError):
    """Training met a loss or a gradient that is not finite.

    Attributes:
        finding: the first equation that made it, or None; it stands below the message.
        state: the last good state.
        history: of the epochs before.
    """

    def __init__(self, message: str, finding: Any = None, **parts: str) -> None:
        super().__init__(message, **parts)
        self.finding = finding
        self.state: Any = None
        self.history: Any = None

    def __str__(self) -> str:
        return self.message if self.finding is None else f"{self.message}\n\n{self.finding}"

    def __copy__(self) -> NonFiniteError:
        twin = type(self)(self.message)
        vars(twin).update(vars(self))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        told = None if self.finding is None else str(self.finding)  # it holds a graph of functions
        return type(self), (self.message,), {**vars(self), "finding": told}


class CheckpointError(BackpropError, RuntimeError):
    """A checkpoint is missing, broken, or of another state than the one asked for."""


class ProcessesError(BackpropError, RuntimeError):
    """Processes cannot run one program together: one is missing or lost, or they differ."""


class ClaimError(BackpropError, TypeError, ValueError):
    """What ``check`` was given claims no gradient, or cannot be called, or names what is not there.

    A ``TypeError`` where its kind is at fault, a ``ValueError`` where a name is.
    """


class WrongGradientError(BackpropError, AssertionError):
    """A check found a hand-derived gradient wrong; ``report`` has everything it found.

    Also raised for a check without result, where that was asked for.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def describe(value: Any) -> str:
    """Call an array or its abstract value ``f32[3,5]``, anything else by its type's name."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        if isinstance(value, bool | int | float | complex | np.generic):
            return f"{type(value).__name__} {value!r}"
        return type(value).__name__
    name = "float0" if dtype == FLOAT0 else SHORT_DTYPES.get(str(dtype), str(dtype))
    return f"{name}[{','.join(map(str, shape))}]"


def warn(message: str) -> None:
    """Warn of something at the person's line: the one that called the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def missing_rule(name: str, where: str, operands: Sequence[Any]) -> MissingRuleError:
    """Make the error for an equation that neither we nor its author can differentiate."""
    letters = ", ".join(f"x{i}" for i in range(len(operands))) or "x"
    return MissingRuleError(
        f"no rule says how to differentiate the operation {name!r}",
        where=where or "an operation without a known source line",
        got=f"{name}({', '.join(map(describe, operands))}) on the way to a wanted gradient",
        expected="a VJP rule, ours or one that its author registered with JAX",
        do=f'write one:  bp.rule(primitive, "{letters} -> y", x0=lambda y_bar, ...: ...)\n'
        "            or pass its arguments through jax.lax.stop_gradient",
    )
