"""The curves of a training run, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from functional_bp.errors import compose
from functional_bp.train.history import History, PlotExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING, VALIDATION = "#2f6fb3", "#d1662b"  # blue and orange, told apart by everyone
COLUMNS = 3  # of axes, side by side
WIDE = 20.0  # a positive curve that spans this factor is drawn on a logarithmic axis


def figure_of(history: History, names: Sequence[str]) -> Figure:
    """A figure with axes for every quantity: its training and its validation curve.

    Raises:
        PlotExtraError: matplotlib is not installed.
        HistoryError: the history has no such name, or no epoch.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotExtraError(
            compose(
                "the history cannot be drawn",
                got="no package matplotlib",
                expected="matplotlib, which draws it",
                do="pip install 'functional-bp[pictures]'",
            )
        )
    for name in names or ("loss",) * (not history.rows):
        history[name]  # an unknown name is refused here
    quantities = list(dict.fromkeys(name.removeprefix("val_") for name in names or history))
    columns = min(COLUMNS, len(quantities))
    rows = math.ceil(len(quantities) / columns)
    figure = _empty_figure(columns, rows)
    for k, quantity in enumerate(quantities):
        axes = figure.add_subplot(rows, columns, k + 1)
        _draw(axes, history, quantity)
    return figure


def _empty_figure(columns: int, rows: int) -> Figure:
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that notebooks show without pyplot, which would show it twice."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=120)
            return file.getvalue()

    return ShownFigure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")


def _draw(axes: Any, history: History, quantity: str) -> None:
    """Both curves of a quantity, and a mark at the best of validation's loss."""
    curves = [(quantity, "training", TRAINING), (f"val_{quantity}", "validation", VALIDATION)]
    drawn = [(n, label, color) for n, label, color in curves if n in history]
    everything: list[float] = []
    for name, label, color in drawn:
        column = history.column(name)
        epochs = [e + 1 for e, value in zip(history.epochs, column) if value is not None]
        values = [value for value in column if value is not None]
        marker = "o" if len(values) <= 20 else None
        axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=3.5)
        everything += values
    finite = np.array([v for v in everything if math.isfinite(v)])
    if finite.size and finite.min() > 0 and finite.max() > WIDE * finite.min():
        axes.set_yscale("log")
    axes.set_title(quantity.replace("_", " "), loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(drawn) > 1:
        axes.legend(frameon=False)
