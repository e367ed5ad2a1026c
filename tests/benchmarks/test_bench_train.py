"""``python -m benchmarks train``: its columns, and that all sides train the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from benchmarks import train
from benchmarks.__main__ import main
from benchmarks.trainers import LeftOutError, cycle, tasks

OURS = ("jax", "step")


def tiny() -> tasks.Task:
    return tasks.mlp_task(inputs=6, hidden=8, batch_size=4)


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured does not depend on what else is installed."""
    for side in set(train.SIDES) - set(OURS):
        monkeypatch.delitem(train.SIDES, side)
    monkeypatch.delitem(train.FITS, "keras fit")


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    """Single precision, as the command runs in."""
    with jax.enable_x64(False):
        yield


def measured(fit: Any = None) -> Any:
    """One sample of everything, with ``fit`` in place of a ``fit`` that takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        if fit is not None:
            patch.setitem(train.FITS, "fit", (fit, ""))
            for part in train.PARTS:
                patch.setitem(train.PARTS, part, fit)
        return train.measure({"mlp": tiny}, 1, sample_seconds=0.0, epoch_seconds=0.0)


def quick(task: Any, steps: int, epochs: int, after_epoch: Any) -> list[float]:
    for _ in range(epochs):
        after_epoch()
    return [1.0] * epochs


def test_every_column_is_there() -> None:
    found = measured()
    (row,) = found["rows"]
    assert row["model"] == "mlp" and not found["left_out"]
    assert set(row["losses"]) == set(row["step_seconds"]) == set(row["speed"]) == set(OURS)
    assert row["speed"]["jax"] == 1 and row["speed"]["step"] > 0
    assert min(row["step_seconds"].values()) > 0
    assert set(row["fit"]) == {"step_seconds", "speed", "added_seconds", "added_ratio", "steps"}
    for each in ("fit", *train.PARTS):
        assert row[each]["step_seconds"] > 0 and row[each]["steps"] == 1


def test_all_sides_train_the_same() -> None:
    (row,) = measured(quick)["rows"]
    # The fifth loss of Adam from the same parameters: float32, sums of some tens of products.
    assert row["losses"]["step"] == pytest.approx(row["losses"]["jax"], rel=1e-5)
    assert row["largest_difference"] <= 1e-5
    assert row["losses"]["jax"] != pytest.approx(train.in_jax.plain(tiny())(1), rel=1e-3)


def test_a_side_that_trains_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    other = lambda task: train.in_jax.step(task._replace(x=1.01 * task.x))
    monkeypatch.setitem(train.SIDES, "step", train.Side(other))
    assert measured(quick)["rows"][0]["largest_difference"] > 1e-4


def test_who_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = train.Side(train.in_jax.plain, "no_such_package", "pip install it")
    monkeypatch.setitem(train.SIDES, "absent", absent)
    monkeypatch.setitem(train.FITS, "absent fit", (quick, "no_such_package"))
    found = measured(quick)
    assert found["left_out"] == {"absent": "not installed: pip install it"}
    assert "absent" not in found["rows"][0]["speed"] and "absent fit" not in found["rows"][0]
    assert "left out: absent (not installed: pip install it)" in train.table(found)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LeftOutError("runs on another\nbackend"), "runs on another"),
        (RuntimeError("no compiler"), "RuntimeError: no compiler"),
    ],
)
def test_who_fails_is_named(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Any) -> Any:
        raise error

    monkeypatch.setitem(train.SIDES, "broken", train.Side(broken, "jax", ""))
    found = measured(quick)
    assert found["left_out"] == {"broken of mlp": text}
    assert set(found["rows"][0]["speed"]) == set(OURS)


def test_our_own_failure_is_no_column_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setitem(train.SIDES, "step", train.Side(broken))
    with pytest.raises(RuntimeError, match="ours"):
        measured(quick)


def test_what_fit_adds_is_measured_against_the_step_between_its_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock goes on by two seconds a step of JAX and four a step of ours; an epoch says 50.
    clock = [0.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])

    def side(seconds: float) -> Any:
        def take(count: int) -> float:
            clock[0] += seconds * count
            return 0.0

        return take

    bare = {"jax": side(2.0), "step": side(4.0)}

    def epochs(task: Any, steps: int, count: int, after_epoch: Any) -> list[float]:
        quick(task, steps, count, after_epoch)
        return [9e9, *[50.0] * (count - 1)]  # the first one compiles

    found = train._fit_seconds(tiny(), epochs, bare, 10, 3)
    assert found == {"step_seconds": 5, "speed": 0.4, "added_seconds": 1, "added_ratio": 0.25,
                     "steps": 10}  # fmt: skip


def row(model: str, step: float) -> dict[str, Any]:
    fit = {"step_seconds": 2e-3, "speed": 0.5, "added_seconds": 4e-5, "added_ratio": 0.02}
    return {
        "model": model,
        "step_seconds": {"jax": 1e-3, "step": 1e-3 / step},
        "speed": {"jax": 1.0, "step": step},
        "fit": fit,
        "ready": {**fit, "added_seconds": 2e-5},
        "unchecked": {**fit, "added_seconds": -1e-6},
        "largest_difference": 1e-7,
    }


def test_the_table_has_a_line_per_model() -> None:
    rows = [row("mlp", 1.25), row("gpt", 0.75)]
    lines = train.table({"device": "cpu", "rows": rows, "left_out": {}}).splitlines()
    assert "above 1 is faster" in lines[0]
    head, first, *_ = table = lines[lines.index("") + 1 :]
    assert head.split() == "model jax step fit fit adds ready unchecked losses".split()
    assert first.split() == "mlp 1.00 ms 1.25 0.50 +40 µs +2.0 % +20 µs -1 µs 1e-07".split()
    assert [line.split()[0] for line in table[1:]] == ["mlp", "gpt"]


def test_batches_come_round() -> None:
    following = cycle(["a", "b"])
    assert [following() for _ in range(5)] == ["a", "b", "a", "b", "a"]
    task = tiny()
    x, y = task.tiled(6)
    assert (x[-8:-4] == task.batches()[0][0]).all() and (y[-4:] == task.batches()[1][1]).all()


def test_the_command_prints_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train.tasks, "mlp", tiny)
    monkeypatch.setitem(train.FITS, "fit", (quick, ""))
    for part in train.PARTS:
        monkeypatch.setitem(train.PARTS, part, quick)
    monkeypatch.setattr(train.measure, "__defaults__", (0.0, 0.0))
    assert main(["train", "--only", "mlp", "--repeats", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["rows"]] == ["mlp"]
    assert main(["train", "--only", "mlp", "--repeats", "1"]) == 0
    assert "above 1 is faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--only", "mlp", "resnet"], "'resnet'; there are mlp, lenet"),
        (["--repeats", "0"], "--repeats"),
    ],
)
def test_called_wrongly(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    assert text in capsys.readouterr().err
