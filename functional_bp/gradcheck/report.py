"""A report of a check can be had in several forms.

Each is imported where it is asked for: the class itself needs neither JAX nor rich.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from functional_bp.gradcheck.findings import CheckResult, Verdict

WIDEST = 100  # columns of plain text, unless more are asked for


@dataclass(frozen=True)
class Report(CheckResult):
    """A report says whether the gradient is right, and if not, where and why.

    ``print(report)`` shows all of it; a notebook shows it as HTML.

    Attributes:
        name: what was checked.
        verdict: "right", "wrong" or "inconclusive".
        findings: what is wrong; empty unless the verdict is "wrong".
        rows: everything that was checked, with its outcome.
        notes: what a person should know though it is no error (a kink's other convention).
        reasons: why the verdict is "inconclusive".
        seconds: how long the check took.
        settings: what is needed to repeat it ("jax", "backend", "seed", "reference", …).
    """

    def raise_if_wrong(self, *, inconclusive: bool = False) -> None:
        """Raise if the gradient is wrong.

        Args:
            inconclusive: raise too where the check came to no verdict.

        Raises:
            WrongGradientError: with the findings in short; its ``report`` is this one.
        """
        refused = (Verdict.WRONG, Verdict.INCONCLUSIVE) if inconclusive else (Verdict.WRONG,)
        if self.verdict in refused:
            from functional_bp.errors import WrongGradientError
            from functional_bp.gradcheck.formats.words import in_short

            raise WrongGradientError(in_short(self), self)

    def to_text(self, width: int = WIDEST) -> str:
        """Write plain text of so many columns; ``print(report)`` takes those of the terminal."""
        from functional_bp.gradcheck.formats import text

        return text.plain([self], width)

    def to_html(self) -> str:
        """Write a page that stands by itself, for light and dark screens."""
        from functional_bp.gradcheck.formats import html

        return html.render([self])

    def to_markdown(self) -> str:
        """Write Markdown, as GitHub shows it."""
        from functional_bp.gradcheck.formats import markdown

        return markdown.render([self])

    def to_json(self) -> str:
        """Write JSON with everything in it; ``Report.from_json`` reads it."""
        from functional_bp.gradcheck.formats import json

        return json.render([self])

    @staticmethod
    def from_json(text: str) -> Report:
        """Read the report that ``to_json`` wrote.

        Raises:
            ValueError: it is no report, or one of a later version.
        """
        from functional_bp.gradcheck.formats import json

        return json.read(text, Report)

    def __str__(self) -> str:
        columns = shutil.get_terminal_size((WIDEST, 24)).columns
        return self.to_text(min(columns, WIDEST)).rstrip("\n")

    def __rich__(self) -> Any:
        from functional_bp.gradcheck.formats import text

        return text.render([self])

    def _repr_html_(self) -> str:
        from functional_bp.gradcheck.formats import html

        return html.fragment([self])
