"""Progress: rates and times that are right by a clock of our own, and steps that cost little."""

from __future__ import annotations

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from functional_bp.train.progress import Progress, Status


class Recorder:
    """A display that remembers what it was shown."""

    interval_seconds = 0.1

    def __init__(self) -> None:
        self.shown: list[Status] = []
        self.kept: list[Status] = []
        self.notes: list[str] = []
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def show(self, status: Status) -> None:
        self.shown.append(status)

    def keep(self, status: Status) -> None:
        self.kept.append(status)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.calls.append("close")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def train(
    shown: Any,
    clock: Clock,
    *,
    epochs: int = 3,
    steps: int = 50,
    compile_seconds: float = 20.3,
    step_seconds: float = 0.05,
    validate_seconds: float = 1.0,
) -> None:
    """Epochs of equal steps of 8 examples; the first step of all takes longer."""
    for epoch in range(epochs):
        shown.epoch(epoch)
        for k in range(steps):
            clock.now += step_seconds + (compile_seconds if epoch == k == 0 else 0.0)
            shown.step(k + 1, 8)
        shown.validate()
        clock.now += validate_seconds
        shown.end_epoch({"loss": 1.0 / (epoch + 1), "val_loss": 2.0})


@pytest.mark.parametrize("known", [True, False])
def test_rates_and_times_are_those_of_the_clock(clock: Clock, known: bool) -> None:
    recorder = Recorder()
    with Progress(recorder, 3, 50 if known else None) as shown:
        train(shown, clock)
    assert recorder.calls == ["open", "close"]
    for status in recorder.kept:
        assert status.rate == pytest.approx(8 / 0.05) and status.per_example  # without compiling
        assert status.seconds == pytest.approx(50 * 0.05 + 1 + 20.3 * (status.epoch == 0))
        assert status.steps == status.steps_per_epoch == 50  # known after it, if not before
    training = [s for s in recorder.shown if s.phase == "training" and s.rate is not None]
    assert {s.epoch for s in training} == {0, 1, 2} and len(training) > 60
    for status in training:
        assert status.rate == pytest.approx(8 / 0.05)
        if known or status.epoch:
            left = (50 - status.steps) * 0.05
            beside = 1.0 if status.epoch else 0.0  # validation, once there was one
            more = 2 - status.epoch
            assert status.left_seconds == pytest.approx(left)
            whole = left + more * 50 * 0.05 + (more + 1) * beside
            assert status.run_left_seconds == pytest.approx(whole)
        else:
            assert status.left_seconds is None and status.run_left_seconds is None


def test_the_rate_follows_a_machine_that_becomes_slower(clock: Clock) -> None:
    recorder = Recorder()
    with Progress(recorder, 1, 1000) as shown:
        shown.epoch(0)
        for k in range(1000):
            clock.now += 0.01 if k < 500 else 0.1
            shown.step(k + 1, 8)
    assert recorder.shown[-1].rate == pytest.approx(80, rel=0.01)
    assert recorder.shown[30].rate == pytest.approx(800, rel=0.01)


def test_phases(clock: Clock) -> None:
    recorder = Recorder()
    with Progress(recorder, 3, 50) as shown:
        train(shown, clock, epochs=1)
        assert recorder.shown[0].phase == "compiling" and recorder.shown[0].rate is None
        assert recorder.shown[1].phase == "training" and recorder.shown[1].steps == 1
        assert recorder.shown[-1].phase == "validating" and recorder.kept[-1].phase == "done"
        shown.epoch(1)
        shown.step(1, 8)
    assert recorder.kept[-1].phase == "stopped" and recorder.kept[-1].steps == 1


def test_an_epoch_that_is_resumed_in_its_middle(clock: Clock) -> None:
    recorder = Recorder()
    with Progress(recorder, 5, 50) as shown:
        shown.epoch(3, start=40)
        for k in range(40, 50):
            clock.now += 1.0
            shown.step(k + 1, 8)
        assert recorder.shown[-2].rate == pytest.approx(8)
        assert recorder.shown[-2].left_seconds == pytest.approx(1)
        shown.end_epoch({})
    assert recorder.kept[0].rate == pytest.approx(8) and recorder.kept[0].steps == 50


def test_steps_are_counted_where_examples_are_not(clock: Clock) -> None:
    recorder = Recorder()
    with Progress(recorder, 1, None) as shown:
        shown.epoch(0)
        for k in range(20):
            clock.now += 0.25
            shown.step(k + 1)
        shown.end_epoch({})
    assert recorder.kept[0].rate == pytest.approx(4) and not recorder.kept[0].per_example


def test_the_device_is_read_at_redraws_only(clock: Clock) -> None:
    reads = 0

    def read() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"loss": jnp.float32(0.5), "confusion": np.ones((2, 2))}

    recorder = Recorder()
    with Progress(recorder, 1, 10_000, read) as shown:
        shown.epoch(0)
        for k in range(10_000):
            clock.now += 0.001  # ten seconds in all
            shown.step(k + 1, 8)
        shown.end_epoch({"loss": 0.25})
    assert reads == len(recorder.shown) - 1 and 50 <= reads <= 101
    assert recorder.shown[5].logs == {"loss": 0.5} and recorder.kept[0].logs == {"loss": 0.25}


def test_slow_drawing_takes_a_small_part_of_the_time(clock: Clock) -> None:
    recorder = Recorder()

    def slow(status: Status) -> None:
        clock.now += 0.05
        recorder.shown.append(status)

    recorder.show = slow  # type: ignore[method-assign]
    with Progress(recorder, 1, 100_000) as shown:
        shown.epoch(0)
        for k in range(100_000):
            clock.now += 0.001
            shown.step(k + 1)
    assert 15 <= len(recorder.shown) <= 25  # 1 % of 100 s, 50 ms each, and the first two


def test_a_step_costs_little() -> None:
    with Progress(Recorder(), 1, 10**6) as shown:
        shown.epoch(0)
        shown.step(1, 8)
        best = np.inf
        for _ in range(20):
            begin = time.perf_counter()
            for k in range(1000):
                shown.step(k + 2, 8)
            best = min(best, (time.perf_counter() - begin) / 1000)
    assert best < 5e-6


def test_numbers_are_shown_when_training_is_interrupted(clock: Clock) -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        with Progress(recorder, 1, 10, lambda: {"loss": 0.5}) as shown:
            shown.epoch(0)
            shown.step(1)
            shown.step(2)
            raise KeyboardInterrupt
    assert recorder.kept[0].logs == {"loss": 0.5} and recorder.kept[0].steps == 2
    assert recorder.calls == ["open", "close"]


def test_numbers_that_cannot_be_read_any_more_hide_no_error(clock: Clock) -> None:
    recorder = Recorder()
    values = {"loss": jnp.ones(())}
    with pytest.raises(ZeroDivisionError):
        with Progress(recorder, 1, 10, lambda: values) as shown:
            shown.epoch(0)
            shown.step(1)
            values["loss"].delete()
            raise ZeroDivisionError
    assert recorder.kept[0].logs == {"loss": 1.0}
