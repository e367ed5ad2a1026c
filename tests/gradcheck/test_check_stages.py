"""What is checked: a planted fault for every stage, that the others cannot see."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

from functional_bp.gradcheck import check as checker
from functional_bp.gradcheck import context
from functional_bp.gradcheck.check import check
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.stages import inputs

X = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], np.float32)


def square(backward: Callable, forward: Callable | None = None) -> Any:
    """x² with a hand-written pullback ``backward(x, y_bar)``."""
    made = jax.custom_vjp(lambda x: x * x)
    made.defvjp(forward or (lambda x: (x * x, x)), backward)
    return made


def counting() -> Callable:
    calls = itertools.count()
    return lambda x, y_bar: (2 * x * y_bar * (1.0 if next(calls) == 0 else 1.5),)


def random() -> Callable:
    rng = np.random.default_rng(0)
    return lambda x, y_bar: (2 * x * y_bar + rng.standard_normal() * 1e-3,)


def shared() -> Any:
    last: list[Any] = []

    def forward(x):
        last[:] = [x]
        return x * x, None

    return square(lambda _, y_bar: (2 * last[0] * y_bar,), forward)


def tells_tracers(x, y_bar):
    return (2 * x * y_bar * (1.01 if isinstance(x, jax.core.Tracer) else 1.0),)


@jax.custom_batching.custom_vmap
def twice(x):
    return 2 * x


@twice.def_vmap
def twice_batched(axis_size, in_batched, x):
    return 2 * x.sum(0, keepdims=True) + 0 * x, True


def two_outputs(bars: Callable) -> Any:
    made = jax.custom_vjp(lambda x: (jnp.sin(x), jnp.cos(x)))
    made.defvjp(lambda x: ((jnp.sin(x), jnp.cos(x)), x), lambda x, out: (bars(x, *out),))
    return made


def softplus(backward: Callable) -> Any:
    made = jax.custom_vjp(lambda x: jnp.logaddexp(x, 0.0))
    made.defvjp(lambda x: (jnp.logaddexp(x, 0.0), x), backward)
    return made


def bias(backward: Callable) -> Any:
    made = jax.custom_vjp(lambda x, b: x + b)
    made.defvjp(lambda x, b: (x + b, None), lambda _, y_bar: (y_bar, backward(y_bar)))
    return made


def take(backward: Callable) -> Any:
    made = jax.custom_vjp(lambda x, i: x[i])
    made.defvjp(lambda x, i: (x[i], (jnp.zeros_like(x), i)),
                lambda kept, y_bar: (backward(kept[0].at[kept[1]], y_bar), None))  # fmt: skip
    return made


DISTINCT = np.array([2, 0, 1])
TABLE = np.arange(15, dtype=np.float32).reshape(5, 3) / 7

FAULTS = [
    ("structure", square(lambda x, y_bar: (2 * x * y_bar, y_bar)), (X,)),
    ("structure", square(lambda x, y_bar: ((2 * x * y_bar)[:, :2],)), (X,)),
    ("missing sum", bias(lambda y_bar: y_bar), (X, X[0])),
    ("dtype", square(lambda x, y_bar: ((2 * x * y_bar).astype(jnp.bfloat16),)), (X,)),
    ("error", square(lambda x, y_bar: ({}["x"],)), (X,)),
    ("hidden state", square(counting()), (X,)),
    ("hidden state", shared(), (X,)),
    ("not deterministic", square(random()), (X,)),
    ("jit", square(tells_tracers), (X,)),
    ("not linear", square(lambda x, y_bar: (2 * x * y_bar**2,)), (X,)),
    ("not linear", square(lambda x, y_bar: (2 * x * y_bar + 1e-3,)), (X,)),
    ("cotangent ignored", square(lambda x, y_bar: (2 * x,)), (X,)),
    ("cotangent ignored", two_outputs(lambda x, s, c: s * jnp.cos(x)), (X,)),
    ("value", square(lambda x, y_bar: (2 * x * y_bar,), lambda x: (x * x + 1e-4, x)), (X,)),
    ("second order", square(lambda x, y_bar: (2 * lax.stop_gradient(x) * y_bar,)), (X,)),
    ("vmap", square(lambda x, y_bar: (twice(x) * y_bar,)), (X,)),
    ("precision", square(lambda x, y_bar: (((1e4 + 2 * x) - 1e4) * y_bar,)), (X,)),
    (
        "overflow",
        softplus(lambda x, y_bar: (y_bar * jnp.exp(x) / (1 + jnp.exp(x)),)),
        (np.array([1.0, 2.0, 0.9], np.float32),),
    ),
]


@pytest.mark.parametrize(("kind", "subject", "args"), sampled(FAULTS, 2),
                         ids=[f"{kind}-{i}" for i, (kind, *_) in enumerate(FAULTS)])  # fmt: skip
def test_a_fault_of_every_stage_is_found_and_named(kind: str, subject: Any, args: tuple) -> None:
    report = check(subject, *args)
    assert [f.kind for f in report.findings] == [kind], report.findings
    assert kind in set(Kind) and report.findings[0].message
    assert any(row.outcome == "wrong" for row in report.rows) or kind == "error"


OFF_INPUTS = [
    ("below −9", softplus(lambda x, y_bar: (y_bar * jnp.where(x < -9, 0.0, jax.nn.sigmoid(x)),)),
     (X,)),
    ("above 20", softplus(lambda x, y_bar: (y_bar * jnp.where(x > 20, 1.1, jax.nn.sigmoid(x)),)),
     (X,)),
    ("at zero", square(lambda x, y_bar: (y_bar * jnp.where(x == 0, 1.0, 2 * x),)), (X,)),
    ("negative", square(lambda x, y_bar: (y_bar * 2 * jnp.abs(x),)), (np.abs(X),)),
    ("repeated indices", take(lambda at, y_bar: at.set(y_bar)), (TABLE, DISTINCT)),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "args", "reference"), sampled(
    (pytest.param(*c[1:], reference, id=f"{c[0]}, {judge}")
     for c in OFF_INPUTS for judge, reference in [("reference", None), ("differences", False)]),
    3))  # fmt: skip
def test_faults_away_from_the_given_inputs_are_found(
    subject: Any, args: tuple, reference: Any
) -> None:
    report = check(subject, *args, reference=reference)
    assert report.verdict == "wrong"
    finding = report.findings[0]
    assert finding.inputs != "given" and finding.argument == "x"
    assert set(finding.example) >= {"x"}


def test_the_right_versions_of_the_same_are_right() -> None:
    assert check(take(lambda at, y_bar: at.add(y_bar)), TABLE, DISTINCT).ok
    assert check(softplus(lambda x, y_bar: (y_bar * jax.nn.sigmoid(x),)), X).ok
    assert check(two_outputs(lambda x, s, c: s * jnp.cos(x) - c * jnp.sin(x)), X).ok
    assert check(bias(lambda y_bar: y_bar.sum(0)), X, X[0]).ok


def test_a_failing_input_is_shrunk() -> None:
    subject = softplus(lambda x, y_bar: (y_bar * jnp.where(x < -9, 0.0, jax.nn.sigmoid(x)),))
    example = check(subject, X).findings[0].example["x"]
    plain = np.isin(example, (0.0, 1.0))
    assert plain.sum() >= example.size - 2 and example.min() < -9


def test_a_loop_that_never_ends_elsewhere_does_not_hang() -> None:
    def forward(x):  # halves x until it is below one: never ends for NaN or infinity
        return lax.while_loop(lambda v: jnp.any(jnp.abs(v) > 1), lambda v: v / 2, x)

    def fwd(x):
        y = forward(x)
        return y, y / x

    made = jax.custom_vjp(forward)
    made.defvjp(fwd, lambda ratio, y_bar: (ratio * y_bar,))
    report = check(made, np.array([3.0, 5.0], np.float32), reference=False)
    assert report.verdict != "wrong" and "while_loop" in report.notes[0]


def test_a_function_that_is_not_finite_at_the_inputs_is_inconclusive() -> None:
    made = jax.custom_vjp(jnp.log)
    made.defvjp(lambda x: (jnp.log(x), x), lambda x, y_bar: (y_bar / x,))
    report = check(made, np.array([-1.0, 2.0], np.float32))
    assert report.verdict == "inconclusive"
    assert report.reasons == ("the function is not finite there",)


def test_signs_that_the_given_inputs_do_not_have_may_be_outside_the_domain() -> None:
    def inverse_root(x):
        return lax.rsqrt(jnp.abs(x))

    made = jax.custom_vjp(inverse_root)
    made.defvjp(lambda x: (inverse_root(x), x), lambda x, y_bar: (-0.5 * y_bar * x**-1.5,))
    positive = check(made, np.array([0.5, 1.0, 2.0], np.float32))
    assert positive.ok and "outside the domain" in positive.notes[0]
    mixed = check(made, np.array([0.5, -1.0, 2.0], np.float32))
    assert [f.kind for f in mixed.findings] == ["not finite"]


@pytest.mark.parametrize("lost, verdict", [(jnp.nan, "wrong"), (-jnp.inf, "right")])
def test_a_forward_pass_that_asks_for_the_sign_means_zero_to_be_met(lost, verdict) -> None:
    """NaN is no limit of a derivative; an infinity may be one."""

    def safe_log(x):
        return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), 0.0)

    made = jax.custom_vjp(safe_log)
    made.defvjp(
        lambda x: (safe_log(x), x),
        lambda x, y_bar: (y_bar * jnp.where(x == 0, lost, jnp.where(x > 0, 1.0 / x, 0.0)),),
    )
    assert check(made, np.array([0.5, 1.0, 2.0], np.float32)).verdict == verdict


def test_a_diagnosis_that_raises_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(context, "diagnose", broken)
    report = check(square(lambda x, y_bar: (3 * x * y_bar,)), X)
    assert report.verdict == "wrong"
    assert "RuntimeError: no idea" in report.findings[0].message


def test_a_stage_that_raises_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_order(_: Any) -> None:
        raise RuntimeError("no second order today")

    monkeypatch.setattr(checker, "FURTHER", (checker.Stage("second order", second_order),))
    report = check(square(lambda x, y_bar: (2 * x * y_bar,)), X)
    left_out = [row for row in report.rows if row.outcome == "left out"]
    assert report.ok and left_out[0].checked == "second order"


def test_time_that_is_up_is_said() -> None:
    report = check(square(lambda x, y_bar: (2 * x * y_bar,)), X, seconds=0.0)
    assert report.verdict == "inconclusive"
    assert "0 seconds were up before single cotangents" in report.reasons[0]


def test_a_search_that_the_clock_cuts_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(seconds: float, cut_short: bool) -> set[str]:
        monkeypatch.setattr(inputs, "SHRINK_SECONDS", seconds)
        made = Finding("other", "", cut_short=cut_short)
        monkeypatch.setattr(context, "diagnose", lambda *_: made)
        return {note.partition(" was cut short")[0] for note in check(subject, X, quick=True).notes}

    subject = softplus(lambda x, y_bar: (y_bar * jnp.where(x < -9, 0.0, jax.nn.sigmoid(x)),))
    assert notes(1e9, False) == set()
    assert notes(-1.0, False) == {"the search for a smaller input that fails"}
    assert notes(1e9, True) == {"the diagnosis"}


def test_a_stage_that_lacks_what_it_needs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    stages = [
        checker.Stage("quiet", ran.append, {checker.TIME: ""}),
        checker.Stage("loud", ran.append, {checker.REFERENCE: "no reference"}, "its row"),
        checker.Stage("needless", ran.append),
    ]
    monkeypatch.setattr(checker, "FURTHER", stages)
    right = square(lambda x, y_bar: (2 * x * y_bar,))
    report = check(right, X, quick=True, reference=False)
    left_out = [(row.checked, row.against) for row in report.rows if row.outcome == "left out"]
    assert len(ran) == 1 and left_out == [("its row", "no reference")]
    assert len(ran) == 1 and check(right, X).ok and len(ran) == 4


def test_a_persons_own_exception_is_no_fault_of_structure() -> None:
    """Whatever it says: what tells them apart is who raised it."""

    def raises(x, y_bar):
        raise TypeError("the bwd rule must produce a cotangent of this structure")

    (finding,) = check(square(raises), X, quick=True).findings
    assert finding.kind == "error" and finding.where.text.startswith("raise TypeError")
    (finding,) = check(square(lambda x, y_bar: (y_bar, y_bar)), X, quick=True).findings
    assert finding.kind == "structure" and finding.where is None
