"""``checked`` marks a hand-derived gradient, for the command line and pytest to check."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

Subject = TypeVar("Subject")


@dataclass(frozen=True, eq=False)
class Mark:
    """A mark is one use of ``checked``.

    Attributes:
        subject: what is marked.
        arguments: the inputs, or a single function without parameters that returns them; empty
            where they are to be found as ``functional_bp.gradcheck.targets`` says.
        options: those of ``functional_bp.check``.
        line: where it is marked.
    """

    subject: Any
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0


KEPT_AS = "__checked__"  # the name of a module's list of marks, among its globals


def checked(*args: Any, **options: Any) -> Any:
    """Mark a hand-derived gradient, to be checked on these inputs.

    ``functional-bp check MODULE`` checks everything that is marked in a module, and
    ``pytest --gradients`` makes a test of every mark. The marked object is returned unchanged; no
    array is made and JAX is not imported.

    Args:
        *args: the inputs to check it on; or one function without parameters that returns a tuple
            of them, called when it is checked; or nothing, where an ``example_inputs`` function
            of the module gives them.
        **options: those of ``functional_bp.check``: ``reference=``, ``argnums=``, ``quick=``, …

    Example:
        >>> import functional_bp as bp
        >>> import jax, jax.numpy as jnp
        >>> @bp.checked(lambda: (jnp.linspace(-2.0, 2.0, 5),))
        ... @jax.custom_vjp
        ... def softplus(x):
        ...     return jnp.logaddexp(x, 0.0)
        >>> softplus.defvjp(
        ...     lambda x: (softplus(x), x), lambda x, y_bar: (y_bar * jax.nn.sigmoid(x),))
    """
    frame = sys._getframe(1)
    marks, line = frame.f_globals.setdefault(KEPT_AS, []), frame.f_lineno

    def mark(subject: Subject, arguments: tuple[Any, ...] = args) -> Subject:
        marks.append(Mark(subject, arguments, options, line))
        return subject

    if len(args) == 1 and not options and _takes_arguments(args[0]):
        return mark(args[0], ())  # @checked without parentheses
    return mark


def marks_in(module: ModuleType) -> Sequence[Mark]:
    """Return what is marked in a module, in the order of the file."""
    return tuple(vars(module).get(KEPT_AS, ()))


def _takes_arguments(value: Any) -> bool:
    """Whether it is a function that needs arguments, hence no function that makes inputs."""
    if not isinstance(value, Callable):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = (p for p in parameters if p.default is p.empty)
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in needed)
