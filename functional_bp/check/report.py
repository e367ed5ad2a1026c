"""The report of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from functional_bp.check.findings import Finding, Row, Verdict


@dataclass(frozen=True)
class Report:
    """Is the gradient right, and if not, where and why.

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
        """Whether the gradient is right: neither wrong nor inconclusive."""
        return self.verdict == "right"
