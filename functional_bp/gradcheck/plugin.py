"""The pytest plugin has the fixture ``check_gradient``, and ``--gradients`` makes tests of marks.

pytest loads this file whenever the package is installed; so it imports nothing of JAX until a
gradient is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from functional_bp.gradcheck.report import Report
    from functional_bp.gradcheck.targets import Target

MARK = re.compile(r"\bchecked\b")  # a file without the word marks nothing, and is not imported


class CheckGradient(Protocol):
    """The fixture ``check_gradient`` is called like this."""

    def __call__(
        self, subject: Any, *args: Any, inconclusive: bool = False, **options: Any
    ) -> Report:
        """As ``functional_bp.check``; raises if the gradient is wrong."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--gradients``."""
    parser.getgroup("functional_bp", "hand-derived gradients").addoption(
        "--gradients",
        action="store_true",
        help="also test every gradient that is marked with functional_bp.checked",
    )


@pytest.fixture
def check_gradient() -> CheckGradient:
    """Check a hand-derived gradient as ``functional_bp.check`` does, and fail if it is wrong.

    With ``inconclusive=True`` it also fails where no verdict was reached. Returns the report.
    """
    from functional_bp.gradcheck import check

    def check_gradient(
        subject: Any, *args: Any, inconclusive: bool = False, **options: Any
    ) -> Report:
        __tracebackhide__ = True
        report = check.check(subject, *args, **options)
        report.raise_if_wrong(inconclusive=inconclusive)
        return report

    return check_gradient


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Return a collector for every Python file in which something may be marked."""
    if not parent.config.getoption("gradients") or file_path.suffix != ".py":
        return None
    if not MARK.search(file_path.read_text(encoding="utf-8", errors="replace")):
        return None
    return GradientFile.from_parent(parent, path=file_path)


class GradientFile(pytest.File):
    """A collector has the marks of one file."""

    def collect(self) -> Iterator[pytest.Item]:
        """Make an item of every mark."""
        from functional_bp.gradcheck.targets import TargetError, load_file, marked_in

        try:
            module = load_file(self.path)
        except TargetError as error:
            raise self.CollectError(str(error)) from error
        for target in marked_in(module):
            yield GradientItem.from_parent(self, name=target.short_name, target=target)


class GradientItem(pytest.Item):
    """An item is one mark, to be checked; it fails with the report as its text."""

    def __init__(self, *, target: Target, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.target = target

    def runtest(self) -> None:
        """Check it; skip, with the reasons, where there is no verdict."""
        from functional_bp.gradcheck import check
        from functional_bp.gradcheck.targets import inputs_for

        target = self.target
        inputs = inputs_for(target, seed=target.options.get("seed", 0))
        report = check.check(target.subject, *inputs, **{"name": target.name, **target.options})
        report.raise_if_wrong()
        if not report.ok:
            pytest.skip("not decided: " + "; ".join(report.reasons))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the report, or the message of what could not be checked."""
        from functional_bp.errors import BackpropError, WrongGradientError

        if isinstance(excinfo.value, WrongGradientError) and excinfo.value.report is not None:
            width = self.config.get_terminal_writer().fullwidth
            return excinfo.value.report.to_text(width=width)
        if isinstance(excinfo.value, BackpropError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the file, the line of the mark, and the name."""
        return self.path, self.target.line - 1 if self.target.line else None, self.name
