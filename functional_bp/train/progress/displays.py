"""What shows the progress of training: a bar in a terminal, a box in a notebook, or lines."""

from __future__ import annotations

import html
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from functional_bp.train.history import ordered, shown
from functional_bp.train.progress.pace import Status, duration, left_text, rate_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BAR_WIDTH, LEAST_BAR_WIDTH = 30, 8  # characters
LINE_SECONDS = 60.0  # between lines within an epoch, where there is no bar
KEPT_SECONDS = 0.2  # between lines of finished epochs above a bar
NOTEBOOK_ROWS = 8  # of the last epochs


def epoch_text(status: Status) -> str:
    """The epoch's number among all, of one width in all lines."""
    return f"epoch {status.epoch + 1:{len(str(status.epochs))}d}/{status.epochs}"


def steps_text(status: Status) -> str:
    """The steps done, among all if that is known."""
    if status.steps_per_epoch is None:
        return f"{status.steps:,} steps"
    return f"{status.steps:,}/{status.steps_per_epoch:,}"


def logs_texts(status: Status) -> list[str]:
    """Names and numbers, the loss first."""
    return [f"{name} {shown(status.logs[name])}" for name in ordered(status.logs)]


def line(status: Status) -> str:
    """A moment of training in one line of text."""
    parts = [epoch_text(status)]
    if status.phase != "done":
        parts += [steps_text(status), left_text(status)]
    if status.phase in ("done", "stopped"):
        parts += [duration(status.seconds)]
    parts += [rate_text(status.rate, status.per_example)]
    parts += logs_texts(status)
    return "  ".join(part for part in parts if part)


class Lines:
    """A line for every epoch, and one a minute within long ones."""

    interval_seconds = LINE_SECONDS

    def __init__(self) -> None:
        self._first = True

    def open(self) -> None:
        """Nothing."""

    def show(self, status: Status) -> None:
        """A line; not for the first step, which says little."""
        if not self._first:
            self.keep(status)
        self._first = status.phase == "compiling"

    def keep(self, status: Status) -> None:
        """A line."""
        self.note(line(status))

    def note(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stdout, flush=True)

    def close(self) -> None:
        """Nothing."""


class Bar:
    """Two lines at the bottom of a terminal, with finished epochs above them."""

    interval_seconds = 0.1

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._kept = -math.inf

    def open(self) -> None:
        """Take the bottom of the screen."""
        self._live.start()

    def show(self, status: Status) -> None:
        """Draw the bar."""
        self._live.update(bar(status, self.console.width), refresh=True)

    def keep(self, status: Status) -> None:
        """The line of a finished epoch; not of every one, where they come fast."""
        now = time.perf_counter()
        last = status.epoch + 1 == status.epochs or status.phase != "done"
        if last or now - self._kept >= KEPT_SECONDS:
            self.console.print(styled(line(status), status), soft_wrap=True)
            self.show(status)
            self._kept = now

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Give the bottom of the screen back."""
        from rich.text import Text

        self._live.update(Text(""))
        self._live.stop()


def styled(text: str, status: Status) -> Any:
    """The line with its numbers told from their names."""
    from rich.text import Text

    made = Text(text)
    made.stylize("bold", 0, len(epoch_text(status)))
    made.highlight_regex(r"[\d,.]+ (examples|steps)/s", "dim")
    made.highlight_regex(r"\b(nan|inf)\b", "bold red")
    return made


def bar(status: Status, width: int = 80) -> RenderableType:
    """The epoch's number, a bar, steps, time left and rate; below them the logs.

    Args:
        status: what is shown.
        width: of the terminal; the bar takes what the words leave.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    words, left = _fitted(status, width - len(epoch_text(status)) - 2)
    cells: list[Any] = [Text(epoch_text(status), "bold", no_wrap=True)]
    if status.steps_per_epoch is not None and left >= LEAST_BAR_WIDTH:
        total, wide = status.steps_per_epoch, min(BAR_WIDTH, left)
        cells.append(ProgressBar(total, status.steps, wide, complete_style="blue"))
    cells += [Text(word, no_wrap=True, overflow="ellipsis") for word in words]
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_row(*cells)
    if not status.logs:
        return grid
    logs = "  ".join(logs_texts(status))
    indent = " " * (len(epoch_text(status)) + 2)
    below = Text(indent + logs, overflow="ellipsis", no_wrap=True)
    below.highlight_regex(r"\b(nan|inf)\b", "bold red")
    return Group(grid, below)


def _fitted(status: Status, width: int) -> tuple[list[str], int]:
    """What is said beside the bar, less where it is narrow, and the width that is left."""
    steps, rate = steps_text(status), rate_text(status.rate, status.per_example)
    whole, short = left_text(status), left_text(status, short=True)
    words, left = [steps], width
    for words in ([steps, whole, rate], [steps, short, rate], [steps, short]):
        words = [word for word in words if word]
        left = width - sum(len(word) + 2 for word in words)
        if left >= LEAST_BAR_WIDTH:
            break
    return words, left


class Notebook:
    """A box in a notebook that is drawn again and again: a bar above a table of epochs."""

    interval_seconds = 0.2

    def __init__(self) -> None:
        self._handle: Any = None
        self._rows: list[Status] = []
        self._notes: list[str] = []
        self._drawn = -math.inf
        self._last: Status | None = None

    def open(self) -> None:
        """Nothing; the box comes with the first moment."""

    def show(self, status: Status) -> None:
        """Draw the box."""
        self._last = status
        self._draw()

    def keep(self, status: Status) -> None:
        """A row of the table; drawn with the next moment, where they come fast."""
        self._last = status
        self._rows = [*self._rows[1 - NOTEBOOK_ROWS :], status]
        if time.perf_counter() - self._drawn >= self.interval_seconds:
            self._draw()

    def note(self, text: str) -> None:
        """A line below the table."""
        self._notes.append(text)
        self._draw()

    def close(self) -> None:
        """Draw the last one."""
        if self._last is not None:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        box = HTML(page(self._last, self._rows, self._notes))
        if self._handle is None:
            self._handle = display(box, display_id=True)
        else:
            self._handle.update(box)
        self._drawn = time.perf_counter()


def page(status: Status | None, rows: list[Status], notes: list[str]) -> str:
    """The box as HTML: it takes the colours of the notebook, light or dark."""
    parts = [] if status is None else [_heading(status)]
    if status is not None and status.phase == "training" and status.logs:
        rows = [*rows, status]
    if rows:
        parts.append(_table(rows))
    parts += [f"<div>{html.escape(text)}</div>" for text in notes]
    return f'<div style="font-variant-numeric:tabular-nums">{"".join(parts)}</div>'


def _heading(status: Status) -> str:
    words = [steps_text(status), left_text(status), rate_text(status.rate, status.per_example)]
    text = html.escape(" · ".join(word for word in words if word))
    made = ""
    if status.steps_per_epoch:
        percent = min(100.0, 100 * status.steps / status.steps_per_epoch)
        made = (
            f'<div role="progressbar" aria-valuenow="{percent:.0f}" style="display:inline-block;'
            "width:16em;height:.6em;margin:0 .8em;border-radius:.3em;overflow:hidden;"
            'background:rgba(128,128,128,.3)">'
            f'<div style="width:{percent:.1f}%;height:100%;background:#2f6fb3"></div></div>'
        )
    return f"<div><b>{html.escape(epoch_text(status))}</b>{made} {text}</div>"


def _table(rows: list[Status]) -> str:
    names = ordered(name for status in rows for name in status.logs)
    cell = 'style="text-align:right;padding:.1em 1em .1em 0"'
    head = "".join(f"<th {cell}>{html.escape(name)}</th>" for name in ["epoch", "time", *names])
    body = ""
    for status in rows:
        numbers = [shown(status.logs[name]) if name in status.logs else "" for name in names]
        cells = [str(status.epoch + 1), duration(status.seconds), *numbers]
        dim = "" if status.phase == "done" else ' style="opacity:.6"'
        body += f"<tr{dim}>{''.join(f'<td {cell}>{c}</td>' for c in cells)}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
