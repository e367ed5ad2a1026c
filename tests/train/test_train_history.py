"""The history of a run: lists by name, JSON that loses nothing, data frame, table and picture."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from html_document import Document

from functional_bp.train.history import History, HistoryError, PlotExtraError, shown


def made(epochs: int = 3, every: int = 2) -> History:
    """Losses 1, 1/2, 1/3, …, validated in every second epoch."""
    history = History()
    for epoch in range(epochs):
        logs = {"accuracy": np.float64(epoch / epochs), "loss": jnp.float64(1 / (epoch + 1))}
        if epoch % every == 0:
            logs["val_loss"] = 2 / (epoch + 1)
        history.record(epoch, logs, step=10 * (epoch + 1), seconds=0.5)
    return history


def test_lists_by_name() -> None:
    history = made()
    assert history["loss"] == [1, 1 / 2, 1 / 3] and history["val_loss"] == [2, 2 / 3]
    assert history.column("val_loss") == [2, None, 2 / 3]
    assert history.column("step") == [10, 20, 30] and history.epochs == [0, 1, 2]
    assert (history.steps, history.seconds, history.stopped) == (30, 1.5, None)
    assert list(history) == ["loss", "accuracy", "val_loss"] and len(history) == 3
    assert history.history == dict(history) and "val_loss" in history and "step" not in history
    assert all(type(value) is float for value in history["loss"])


def test_names_that_were_not_recorded_are_refused() -> None:
    with pytest.raises(HistoryError, match=r"no 'val_accuracy'\n.*loss, accuracy(.|\n)*validation"):
        made()["val_accuracy"]
    with pytest.raises(HistoryError, match=r"no 'lr'\n(.|\n)*recorded$"):
        made().plot("lr")
    with pytest.raises(HistoryError, match="no epoch"):
        History().plot()
    assert made().get("val_accuracy") is None


def test_json_gives_back_every_number() -> None:
    history = made()
    history.record(3, {"loss": np.nan, "accuracy": -np.inf, "n": 7}, step=40, seconds=0.1)
    history.stopped = "a reason"
    strict = json.loads(history.to_json(), parse_constant=lambda name: pytest.fail(name))
    again = History.from_dict(strict)
    assert again.rows[:3] == history.rows[:3] and again.stopped == "a reason"
    assert math.isnan(again["loss"][-1]) and again["accuracy"][-1] == -math.inf
    assert again["n"] == [7] and type(again["n"][0]) is int
    assert History.from_json(again.to_json(indent=2)).to_dict() == history.to_dict()
    again.record(4, {"loss": 1.0}, step=50, seconds=1.0)
    assert again.steps == 50 and again.seconds == pytest.approx(2.6)


@pytest.mark.parametrize(("text", "got"), [('{"loss": [1]}', "loss"), ("[1]", "list")])
def test_other_json_is_refused(text: str, got: str) -> None:
    with pytest.raises(HistoryError, match=rf"this is no history\n.*got: +{got}\n"):
        History.from_json(text)


def test_data_frame() -> None:
    pytest.importorskip("pandas", reason="an optional library")
    frame = made().to_pandas()
    assert list(frame.columns) == ["step", "seconds", "loss", "accuracy", "val_loss"]
    assert frame.index.name == "epoch" and frame["step"].tolist() == [10, 20, 30]
    assert np.isnan(frame["val_loss"][1]) and frame["loss"].tolist() == made()["loss"]
    assert len(History().to_pandas()) == 0


@pytest.mark.parametrize(
    ("package", "method", "message"),
    [
        ("pandas", "to_pandas", r"no package pandas(.|\n)*pip install pandas"),
        ("matplotlib", "plot", r"no package matplotlib(.|\n)*'functional-bp\[pictures\]'"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: Any, package: str, method: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PlotExtraError, match=message):
        getattr(made(), method)()


def test_table_in_text() -> None:
    history = made()
    history.stopped = "EarlyStopping: val_loss"
    assert str(history).splitlines() == [
        "History: 3 epochs, 30 steps, 1.5 s; EarlyStopping: val_loss",
        "epoch    loss  accuracy  val_loss",
        "    1  1.0000    0.0000    2.0000",
        "    2  0.5000    0.3333",
        "    3  0.3333    0.6667    0.6667",
    ]
    assert str(History()) == "History: 0 epochs, 0 steps, 0.0 s"


def test_long_tables_leave_out_the_middle() -> None:
    lines = str(made(1000)).splitlines()
    assert len(lines) == 2 + 10 + 1 + 10 and lines[12].strip() == "…"
    assert lines[11].split()[0] == "10" and lines[13].split()[0] == "991"
    assert lines[-1].split()[:2] == ["1000", shown(1 / 1000)]


def test_table_in_a_notebook() -> None:
    history = made()
    history.stopped = "a <b> & c"
    rows = Document(history._repr_html_()).rows
    assert "a &lt;b&gt; &amp; c" in history._repr_html_()
    assert rows[0] == ["epoch", "loss", "accuracy", "val_loss"]
    assert rows[2] == ["2", "0.5000", "0.3333"]


def test_picture_has_both_curves_of_every_quantity() -> None:
    pytest.importorskip("matplotlib", reason="of the extra pictures")
    history = made(30)
    figure = history.plot()
    loss, accuracy = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]
    training, validation = loss.lines
    np.testing.assert_array_equal(training.get_ydata(), history["loss"])
    np.testing.assert_array_equal(training.get_xdata(), range(1, 31))
    np.testing.assert_array_equal(validation.get_xdata(), range(1, 31, 2))
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert len(accuracy.lines) == 1 and figure._repr_png_()[1:4] == b"PNG"
    assert len(history.plot("val_loss").axes) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (-1.5, "-1.5000"), (9e-4, "9.000e-04"), (1e5, "1.000e+05"), (np.inf, "inf")],
)
def test_numbers_are_shown_so_that_they_say_something(value: float, text: str) -> None:
    assert shown(value) == text
