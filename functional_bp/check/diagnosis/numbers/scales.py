"""The claim beside the truth as a whole: zero, another sign, a constant factor, a conjugate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from functional_bp.check.diagnosis.numbers.constants import CLOSE, Constant, name_of, sizes
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis


def scale_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """What a constant, a sign, a conjugate or another argument's cotangent explains."""
    whole = _zero(evidence) or _factor(evidence)
    return [whole] if whole else [*_conjugate(evidence), *_of_another_argument(evidence)]


def common_factor(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """The c with claimed ≈ c · true over all pairs (claimed, true), by least squares."""
    top = sum(float(np.vdot(true, claimed).real) for claimed, true in pairs)
    bottom = sum(float(np.vdot(true, true).real) for _, true in pairs)
    return top / bottom if bottom > 0 and np.isfinite(top) else None


def factor_message(constant: Constant, subject: str, claimed: str, true: str) -> tuple[str, str]:
    """Kind and message for claimed = c · true."""
    equation = f"{claimed} = {constant.text} · {true}"
    why = f" ({constant.why})" if constant.why else ""
    if constant.text == "−1":
        return "sign", f"{claimed} = −{true}: the sign of {subject} is wrong"
    if constant.size and constant.value < 0:
        return "mean or sum", f"{equation}{why}: wrong sign, and a mean mistaken for a sum"
    if constant.size and constant.value not in (constant.size, 1 / constant.size):
        return "mean or sum", f"{equation}{why}: the mean is over another number of elements"
    if constant.size and constant.value < 1:
        return "mean or sum", f"{equation}{why}: a mean stands where a sum belongs"
    if constant.size:
        return "mean or sum", f"{equation}{why}: a sum stands where a mean belongs"
    return "factor", f"{equation}{why}: {subject} is off by a constant factor"


def _zero(evidence: Evidence) -> Hypothesis | None:
    name, count = evidence.argument, len(evidence.fresh)
    if all(not np.any(case.claimed) for case in evidence.cases):
        message = f"{evidence.here}no gradient flows to {name}: its cotangent is zero throughout"
        return Hypothesis("missing term", message, 0.0, 0.2, count)
    if all(not np.any(case.true) for case in evidence.cases):
        message = (
            f"{evidence.here}the cotangent of {name} should be zero: "
            f"the output does not depend on {name}"
        )
        return Hypothesis("extra term", message, 0.0, 0.2, count)
    return None


def _factor(evidence: Evidence) -> Hypothesis | None:
    c = common_factor([(case.claimed, case.true) for case in evidence.cases])
    if c is None or c == 0:
        return None
    error = evidence.explains(lambda case: c * case.true)
    if error is None:
        return None
    largest = float(np.abs(evidence.given.claimed).max(initial=0.0))
    constant = name_of(c, sizes(evidence), max(CLOSE, evidence.rounding / largest))
    subject = f"the cotangent of {evidence.argument}"
    kind, message = factor_message(constant, subject, "claimed", "true")
    cost = 0.5 if constant.is_one else 1.0 if constant.named else 2.5
    return Hypothesis(kind, evidence.here + message, error, cost, len(evidence.fresh))


def _conjugate(evidence: Evidence) -> list[Hypothesis]:
    if not np.iscomplexobj(evidence.given.true):
        return []
    forms = {
        "conj(true)": (np.conj, "a complex conjugate is missing, or one too many"),
        "−conj(true)": (lambda a: -np.conj(a), "wrong sign, and a conjugate missing or too many"),
        "real(true)": (lambda a: np.real(a) + 0j, "the imaginary part is dropped"),
        "i · true": (lambda a: 1j * a, "off by the factor i"),
        "−i · true": (lambda a: -1j * a, "off by the factor −i"),
    }
    found = []
    for text, (form, what) in forms.items():
        error = evidence.explains(lambda case, form=form: form(case.true))
        if error is not None:
            message = f"{evidence.here}claimed = {text} for {evidence.argument}: {what}"
            found.append(Hypothesis("wrong function", message, error, 0.8, len(evidence.fresh)))
    return found


def _of_another_argument(evidence: Evidence) -> list[Hypothesis]:
    names, own = evidence.subject.names, evidence.disagreement.argument

    def others(case: Case, i: int) -> np.ndarray | None:
        true = np.asarray(case.sample.true[i])
        return true if true.shape == case.shape else None

    for i, name in enumerate(names):
        if i == own:
            continue
        error = evidence.explains(lambda case, i=i: others(case, i))
        if error is None:
            continue
        sample = evidence.given.sample
        swapped = np.allclose(sample.claimed[i], sample.true[own], 1e-6, 0)
        what = "the two are swapped" if swapped else "one cotangent is returned twice"
        message = f"{evidence.here}what is claimed for {names[own]} is the cotangent of {name}"
        # Returned twice it may as well be a factor that was forgotten.
        cost = 0.9 if swapped else 3.1
        return [Hypothesis("wrong operand", f"{message}: {what}", error, cost, len(evidence.fresh))]
    return []
