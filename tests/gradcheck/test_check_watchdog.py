"""A claim that never returns makes no check that never ends."""

from __future__ import annotations

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functional_bp as bp
from functional_bp.gradcheck import check, context
from functional_bp.gradcheck.clock import TimeUp, watchdog


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for module in (check, context):
        monkeypatch.setattr(module, "overtime", lambda seconds: 0.5)


def spin():
    while True:
        pass


def square_with(backward):
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), backward)
    return square


def in_a_thread(run):
    """What ``run`` returns in another thread than the main one."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("where", [lambda run: run(), in_a_thread], ids=["main", "thread"])
def test_a_backward_that_never_returns(where):
    square = square_with(lambda x, y_bar: spin())
    report = where(lambda: bp.check(square, jnp.ones(2), seconds=0.5, name="square"))
    assert report.verdict == "inconclusive" and report.name == "square"
    assert "had not ended after 1 s and was interrupted" in report.reasons[0]
    assert "test_check_watchdog.py" in report.reasons[0]
    assert "not ended" in str(report)


def test_a_wait_in_the_operating_system_is_ended():
    square = square_with(lambda x, y_bar: time.sleep(60))
    started = time.monotonic()
    assert bp.check(square, jnp.ones(2), seconds=0.5).verdict == "inconclusive"
    assert time.monotonic() - started < 30


def test_a_gradient_that_never_returns():
    report = bp.check(lambda x: spin(), jnp.ones(2), of=lambda x: jnp.sum(x**2), seconds=0.5)
    assert report.verdict == "inconclusive" and "calling it had not ended" in report.reasons[0]


def test_it_hangs_on_inputs_that_nobody_tried():
    def forward(x):
        x = np.array(x, float)
        return x**2, x

    def backward(x, y_bar):
        while np.any(x == 0):
            pass
        return (2 * x * y_bar,)

    report = bp.check((forward, backward), np.array([1.0, 2.0]), seconds=2.0)
    assert report.verdict == "inconclusive"
    assert "searched inputs had not ended" in report.reasons[0]
    assert "while np.any(x == 0)" in report.reasons[0] or "pass" in report.reasons[0]


def test_a_finding_outlives_a_diagnosis_that_hangs(monkeypatch):
    monkeypatch.setattr(context, "diagnose", lambda *_: spin())
    report = bp.check(square_with(lambda x, y_bar: (3 * x * y_bar,)), jnp.ones(2), seconds=4.0)
    assert report.verdict == "wrong" and report.findings[0].argument == "x"
    assert "TimeUp" in report.findings[0].message


def test_an_alarm_of_the_program_is_left_alone():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeUp), watchdog(0.5):
            spin()
        assert rang == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_nothing_is_left_behind():
    with watchdog(0.05):
        pass
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    time.sleep(0.1)

    def inside():
        with watchdog(0.05):
            pass
        time.sleep(0.1)
        return "unharmed"

    assert in_a_thread(inside) == "unharmed"


def test_a_loop_that_ends_in_float64_alone():
    def newton(x):
        far = lambda y: jnp.any(jnp.abs(y * y - x) > 1e-12 * x)
        return lax.while_loop(far, lambda y: 0.5 * (y + x / y), jnp.ones_like(x))

    root = jax.custom_vjp(newton)
    root.defvjp(lambda x: (lambda y: (y, y))(newton(x)), lambda y, y_bar: (y_bar / (2 * y),))
    report = bp.check(root, jnp.array([1.0, 2.0, 3.0]), reference=jnp.sqrt)
    assert report.ok, report
    assert any(
        "in float32 a while_loop of the forward pass does not end" in n for n in report.notes
    )


def test_inside_another_one_it_does_nothing():
    with watchdog(60.0):
        with watchdog(0.01):
            time.sleep(0.1)
        handler = signal.getsignal(signal.SIGALRM)
        assert callable(handler), "the outer one still watches"
    with pytest.raises(TimeUp), watchdog(0.2), watchdog(60.0):
        spin()


def test_a_diagnosis_in_a_thread_ends():
    # it profiles the backward pass, where CPython 3.11 spins on a request that nothing answers
    wrong = square_with(lambda x, y_bar: (3 * x * y_bar,))
    report = in_a_thread(lambda: bp.check(wrong, jnp.ones(2)))
    assert report.verdict == "wrong" and report.findings[0].repair is not None
    again = in_a_thread(lambda: [_raced(k) for k in range(5)])
    assert len(again) == 5


def _raced(k: int) -> None:
    """The end of the block and the end of its time fall together."""
    try:
        with watchdog(0.05):
            time.sleep(0.045 + 0.002 * k)
    except TimeUp:
        pass
    for _ in range(100):
        time.sleep(0)
