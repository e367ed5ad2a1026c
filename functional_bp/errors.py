"""The exceptions, and the one place where their messages are built.

Every message says what failed in the user's words, what was got, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.dtypes import float0

SHORT_DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "complex64": "c64", "complex128": "c128", "bool": "bool",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip


class BackpropError(Exception):
    """Base of every error that ``functional_bp`` raises by itself."""


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
        finding: the first equation that made it, or None.
        state: the last good state.
        history: of the epochs before.
    """

    def __init__(self, message: str, finding: Any = None) -> None:
        super().__init__(message)
        self.finding = finding
        self.state: Any = None
        self.history: Any = None


class CheckpointError(BackpropError, RuntimeError):
    """A checkpoint is missing, broken, or of another state than the one asked for."""


class WrongGradientError(BackpropError, AssertionError):
    """A check found a hand-derived gradient wrong; ``report`` has everything it found.

    Also raised for a check without result, where that was asked for.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def describe(value: Any) -> str:
    """``f32[3,5]`` for an array or its abstract value, the type's name for anything else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        if isinstance(value, bool | int | float | complex | np.generic):
            return f"{type(value).__name__} {value!r}"
        return type(value).__name__
    name = "float0" if dtype == float0 else SHORT_DTYPES.get(str(dtype), str(dtype))
    return f"{name}[{','.join(map(str, shape))}]"


def compose(what: str, *, got: str = "", expected: str = "", where: str = "", do: str = "") -> str:
    """One message: what failed, where, what was got, what was expected, what to do."""
    rows = [("at", where), ("got", got), ("expected", expected), ("to do", do)]
    return "\n".join([what, *(f"  {label + ':':<10}{text}" for label, text in rows if text)])


def missing_rule(name: str, where: str, operands: Sequence[Any]) -> MissingRuleError:
    """For an equation whose primitive neither we nor its author can differentiate."""
    letters = ", ".join(f"x{i}" for i in range(len(operands))) or "x"
    return MissingRuleError(
        compose(
            f"no rule says how to differentiate the operation {name!r}",
            where=where or "an operation without a known source line",
            got=f"{name}({', '.join(map(describe, operands))}) on the way to a wanted gradient",
            expected="a VJP rule, ours or one that its author registered with JAX",
            do=f'write one:  bp.rule(primitive, "{letters} -> y", x0=lambda y_bar, ...: ...)\n'
            "            or pass its arguments through jax.lax.stop_gradient",
        )
    )
