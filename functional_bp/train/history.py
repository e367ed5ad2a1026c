"""A history is what a training run recorded: a row an epoch, as numbers, table, picture or JSON."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from functional_bp.errors import BackpropError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_ROWS = 20  # of a table, the first and the last ones
NOT_LOGS = ("epoch", "step", "seconds")
FIELDS = ("rows", "steps", "seconds", "stopped")
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # what JSON has no number for


class HistoryError(BackpropError, KeyError):
    """A history has no such name, or is none."""


class PlotExtraError(BackpropError, ImportError):
    """A package is missing that draws or holds a history."""


def shown(value: float) -> str:
    """A number is shown in four decimals, or with an exponent where they say little.

    Example:
        >>> [shown(v) for v in (0.5, 12.34567, 1e-5, 250000.0, float("nan"), 0.0)]
        ['0.5000', '12.3457', '1.000e-05', '2.500e+05', 'nan', '0.0000']
    """
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.3e}"


def ordered(names: Iterable[str]) -> list[str]:
    """Names of logs are put in order: the loss, the metrics, those of validation, all others.

    Example:
        >>> ordered(["accuracy", "learning_rate", "loss", "val_accuracy", "val_loss"])
        ['loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate']
    """
    last = ("learning_rate", "skipped_steps")

    def rank(name: str) -> tuple[bool, bool, bool]:
        return name in last, name.startswith("val_"), name.removeprefix("val_") != "loss"

    return sorted(dict.fromkeys(names), key=rank)


def html_table(names: Iterable[str], rows: Iterable[tuple[str, list[str]]], padding: str) -> str:
    """Numbers stand in a table of HTML, each row with the attributes of its ``<tr>`` before it."""
    cell = f'style="text-align:right;padding:{padding}"'
    head = "".join(f"<th {cell}>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr{a}>{''.join(f'<td {cell}>{c}</td>' for c in row)}</tr>" for a, row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(eq=False, repr=False)
class History(Mapping[str, list[float]]):
    """A history has what was recorded: ``history["loss"]`` is a list, one number an epoch.

    A name that is not recorded in every epoch, as ``val_loss`` with ``validation_freq=5``, has the
    numbers of those in which it was; ``column`` has a place for every epoch.

    Attributes:
        rows: a dict for each epoch: ``epoch`` (from 0), ``step`` (done in all), ``seconds`` (of
            this epoch), and the logs.
        steps: how many steps were done in all.
        seconds: how long they took, resumed runs together.
        stopped: why training ended before its last epoch; None if it did not.

    Example:
        >>> history = History()
        >>> history.record(0, {"loss": 0.5}, step=10, seconds=2.0)
        >>> history.record(1, {"loss": 0.25, "val_loss": 0.5}, step=20, seconds=1.5)
        >>> history["loss"], history["val_loss"], history.column("val_loss")
        ([0.5, 0.25], [0.5], [None, 0.5])
        >>> print(history)
        History: 2 epochs, 20 steps, 3.5 s
        epoch    loss  val_loss
            1  0.5000
            2  0.2500    0.5000
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None

    def record(self, epoch: int, logs: Mapping[str, Any], *, step: int, seconds: float) -> None:
        """An epoch is added, from 0: its numbers, or arrays of one; ``step`` is of all epochs."""
        numbers = {name: np.asarray(value).item() for name, value in logs.items()}
        row = {"epoch": int(epoch), "step": int(step), "seconds": float(seconds), **numbers}
        self.rows.append(row)
        self.steps, self.seconds = int(step), self.seconds + float(seconds)

    @property
    def epochs(self) -> list[int]:
        """The epochs have these numbers, from 0."""
        return [row["epoch"] for row in self.rows]

    @property
    def history(self) -> dict[str, list[float]]:
        """The lists are a dict, as Keras' ``History.history``."""
        return {name: self[name] for name in self}

    def __getitem__(self, name: str) -> list[float]:
        found = [row[name] for row in self.rows if name in row and name not in NOT_LOGS]
        if not found:
            raise HistoryError(
                f"the history has no {name!r}", got=", ".join(self) or "no epoch",
                expected="a name that was recorded",
                do="pass validation data" if name.startswith("val_") else ""
            )  # fmt: skip
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(ordered(n for row in self.rows for n in row if n not in NOT_LOGS))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def column(self, name: str) -> list[Any]:
        """A name has a place for every epoch: None where it was not recorded.

        ``epoch``, ``step`` and ``seconds`` are names too.
        """
        return [row.get(name) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """All of it goes into JSON: what is not finite is the text "nan", "inf" or "-inf"."""
        rows = [{name: _sayable(value) for name, value in row.items()} for row in self.rows]
        return {**{name: getattr(self, name) for name in FIELDS}, "rows": rows}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> History:
        """The history is made again that ``to_dict`` gave.

        Raises:
            HistoryError: it is something else.
        """
        if not isinstance(fields, Mapping) or set(fields) != set(FIELDS):
            names = ", ".join(fields) if isinstance(fields, Mapping) else type(fields).__name__
            raise HistoryError(
                "this is no history", got=names or "nothing",
                expected=f"{', '.join(FIELDS)}: what to_json and to_dict give"
            )  # fmt: skip
        special = lambda value: SPECIAL[value] if isinstance(value, str) else value
        rows = [{name: special(value) for name, value in row.items()} for row in fields["rows"]]
        return cls(**{**fields, "rows": rows})

    def to_json(self, indent: int | None = None) -> str:
        """All of it becomes JSON; every number comes back the same."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history is made again that ``to_json`` wrote.

        Raises:
            HistoryError: it is something else.
        """
        return cls.from_dict(json.loads(text))

    def to_pandas(self) -> Any:
        """The data frame has a row for every epoch, NaN where a name was not recorded.

        Raises:
            PlotExtraError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise PlotExtraError("the history makes no data frame", got="no package pandas",
                                 expected="pandas, which holds it",
                                 do="pip install pandas") from None  # fmt: skip
        columns = {name: self.column(name) for name in (*NOT_LOGS[1:], *self)}
        index = pandas.Index(self.epochs, name="epoch")
        floats = {name: np.array(column, dtype=float) for name, column in columns.items()}
        frame = pandas.DataFrame(floats, index=index)
        return frame.astype({"step": int})

    def plot(self, *names: str) -> Figure:
        """The picture shows training and validation over the epochs, axes for each quantity.

        Args:
            *names: of what is drawn; all, if there is none.

        Returns:
            A figure that a notebook shows.

        Raises:
            PlotExtraError: matplotlib is not installed.
            HistoryError: there is no such name, or no epoch.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise PlotExtraError("the history cannot be drawn", got="no package matplotlib",
                                 expected="matplotlib, which draws it",
                                 do="pip install 'functional-bp[pictures]'")  # fmt: skip
        for name in names or ("loss",) * (not self.rows):
            self[name]  # an unknown name is refused here
        quantities = list(dict.fromkeys(name.removeprefix("val_") for name in names or self))
        columns = min(COLUMNS, len(quantities))
        rows = math.ceil(len(quantities) / columns)
        figure = _empty_figure(columns, rows)
        for k, quantity in enumerate(quantities):
            axes = figure.add_subplot(rows, columns, k + 1)
            _draw(axes, self, quantity)
        return figure

    def _heading(self) -> str:
        epochs = "1 epoch" if len(self.rows) == 1 else f"{len(self.rows):,} epochs"
        steps = "1 step" if self.steps == 1 else f"{self.steps:,} steps"
        ended = f"; {self.stopped}" if self.stopped else ""
        return f"{epochs}, {steps}, {self.seconds:.1f} s{ended}"

    def _cells(self) -> Iterator[list[str]]:
        """The rows of a table as text; None of them in the place of those left out."""
        half = SHOWN_ROWS // 2
        for k, row in enumerate(self.rows):
            if len(self.rows) <= SHOWN_ROWS or k < half or k >= len(self.rows) - half:
                numbers = [shown(row[name]) if name in row else "" for name in self]
                yield [str(row["epoch"] + 1), *numbers]
            elif k == half:
                yield ["…", *("" for _ in self)]

    def __repr__(self) -> str:
        if not self.rows:
            return f"History: {self._heading()}"
        table = [["epoch", *self], *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths)).rstrip() for row in table]
        return "\n".join([f"History: {self._heading()}", *lines])

    def _repr_html_(self) -> str:
        table = html_table(["epoch", *self], [("", row) for row in self._cells()], "0 .8em 0 0")
        return f"<div><div>{html.escape(self._heading())}</div>{table}</div>"


def _sayable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


# The curves of a training run, drawn by matplotlib.

TRAINING, VALIDATION = "#2f6fb3", "#d1662b"  # blue and orange, told apart by everyone
COLUMNS = 3  # of axes, side by side
WIDE = 20.0  # a positive curve that spans this factor is drawn on a logarithmic axis


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
    """Both curves of a quantity."""
    curves = [(quantity, "training", TRAINING), (f"val_{quantity}", "validation", VALIDATION)]
    drawn = [curve for curve in curves if curve[0] in history]
    finite: list[float] = []
    for name, label, color in drawn:
        points = [(r["epoch"] + 1, r[name]) for r in history.rows if r.get(name) is not None]
        marker = "o" if len(points) <= 20 else None
        axes.plot(*zip(*points), color=color, label=label, marker=marker, markersize=3.5)
        finite += [value for _, value in points if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
    axes.set_title(quantity.replace("_", " "), loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(drawn) > 1:
        axes.legend(frameon=False)
