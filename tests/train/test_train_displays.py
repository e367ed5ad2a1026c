"""What shows progress: lines, the bar of a terminal, the box of a notebook."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from html_document import Document
from rich.console import Console
from test_train_progress import Clock, train

from functional_bp.train import progress as displays
from functional_bp.train.data import DataError
from functional_bp.train.progress import Progress, Silent, Status, in_notebook, progress


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


STATUS = Status(
    2, 50, 120, 400, 41230.4, True, 2.1, 12.3, 580.0, {"accuracy": 0.9, "loss": 0.34123}
)
DONE = Status(
    49, 50, 400, 400, 41230.4, True, 2.1, 0.0, 0.0, {"loss": np.nan, "val_loss": 1e-5}, "done"
)


def test_lines() -> None:
    assert displays.line(STATUS) == (
        "epoch  3/50  120/400  12 s left, 9 min 40 s for all epochs  41,230 examples/s  "
        "loss 0.3412  accuracy 0.9000"
    )
    assert displays.line(DONE) == (
        "epoch 50/50  2.1 s  41,230 examples/s  loss nan  val_loss 1.000e-05"
    )


def test_without_a_terminal_there_is_a_line_for_every_epoch(clock: Clock, capsys: Any) -> None:
    with progress("auto", 3, 50) as shown:
        train(shown, clock)
        shown.note("EarlyStopping: enough")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"epoch {e}/3  {t}  160 examples/s  loss {loss}  val_loss 2.0000"
        for e, t, loss in ((1, "24 s", "1.0000"), (2, "3.5 s", "0.5000"), (3, "3.5 s", "0.3333"))
    ]
    assert lines[3:] == ["EarlyStopping: enough"]


def test_long_epochs_have_a_line_a_minute(clock: Clock, capsys: Any) -> None:
    with progress(2, 1, 300) as shown:
        train(shown, clock, epochs=1, steps=300, step_seconds=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "validating" in lines[4]
    assert lines[0] == "epoch 1/1  61/300  3 min 59 s left  8.0 examples/s"


def test_nothing_is_shown_on_request(clock: Clock, capsys: Any) -> None:
    for verbose in (0, False):
        with progress(verbose, 3, 50) as shown:
            train(shown, clock)
            shown.note("a text")
        assert isinstance(shown, Silent)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verbose", [3, "bar", None])
def test_other_words_are_refused(verbose: Any) -> None:
    with pytest.raises(DataError, match=r"verbose cannot be used\n.*verbose = .*\n.*\"auto\""):
        progress(verbose)


def drawn(status: Status, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as capture:
        console.print(displays.meter(status, width))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("width", "after"),
    [
        (120, ["120/400", "12 s left, 9 min 40 s for all epochs", "41,230 examples/s"]),
        (80, ["120/400", "12 s left", "41,230 examples/s"]),
        (48, ["120/400", "12 s left"]),
    ],
)
def test_the_bar_says_what_there_is_room_for(width: int, after: list[str]) -> None:
    above, below = drawn(STATUS, width)
    found = re.fullmatch(r"epoch  3/50  ([━╸ ]+)  (120/400.*)", above)
    assert found and found[2].split("  ") == after and len(above) <= width
    assert 8 <= len(found[1]) <= 30 and found[1].strip()
    assert below == " " * 13 + "loss 0.3412  accuracy 0.9000"


def test_the_bar_is_filled_in_proportion() -> None:
    for steps in (0, 100, 200, 400):
        above, *_ = drawn(dataclasses.replace(STATUS, steps=steps), 120)
        assert above.count("━") == round(30 * steps / 400 - 0.1)  # half a character is another one


def test_a_terminal_keeps_the_lines_of_epochs(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Progress(displays.Terminal(console), 3, 50) as shown:
        train(shown, clock)
        shown.note("[a] note")
    out = file.getvalue()
    for epoch in (1, 2, 3):
        assert out.count(f"epoch {epoch}/3  {24 if epoch == 1 else 3.5}") == 1
    assert "validating" in out and "compiling the step" in out and "[a] note" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # the cursor is there again


def test_a_terminal_keeps_every_fast_epoch_and_prints_them_together(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Progress(displays.Terminal(console), 1000, 2) as shown:
        train(shown, clock, epochs=1000, steps=2, step_seconds=0.001, validate_seconds=0.001)
    kept = re.findall(r"epoch +(\d+)/1000  (?:20|0\.0) s  .*val_loss", file.getvalue())
    assert [int(epoch) for epoch in kept] == list(range(1, 1001))
    assert file.getvalue().count("\x1b[2K") < 150  # 3 s, some lines every 0.2 s


@pytest.mark.parametrize("width", [34, 60])
def test_a_narrow_terminal_breaks_lines_between_numbers(clock: Clock, width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    with Progress(displays.Terminal(console), 3, 50) as shown:
        train(shown, clock)
        shown.note(
            "stopped: EarlyStopping: val_loss has not improved on 4, of epoch 2, for 2 epochs"
        )
    lines = re.sub(r"\x1b\[[?\d]*[a-zA-Z]|\r", "\n", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert (
        " " * 11 + "val_loss 2.0000" in lines or " " * 11 + "loss 0.5000  val_loss 2.0000" in lines
    )


def test_a_notebook_has_a_bar_and_a_table(clock: Clock, monkeypatch: Any) -> None:
    pages: list[str] = []
    handle = SimpleNamespace(update=lambda box: pages.append(box.data))

    def display(box: Any, display_id: bool) -> Any:
        assert display_id
        handle.update(box)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    with Progress(displays.Notebook(), 20, 50, lambda: {"loss": 0.125}) as shown:
        train(shown, clock, epochs=12)
        shown.note("a <note>")
    assert "compiling the step" in Document(pages[0]).text
    within = Document(pages[10])
    assert within.text.startswith("epoch  1/20 ") and "160 examples/s" in within.text
    assert within.rows[0] == ["epoch", "time", "loss"] and within.rows[1][::2] == ["1", "0.1250"]
    last = Document(pages[-1])
    assert last.rows[0] == ["epoch", "time", "loss", "val_loss"] and len(last.rows) == 9
    assert last.rows[-1] == ["12", "3.5 s", "0.0833", "2.0000"] and "a <note>" in last.text
    assert 'aria-valuenow="100"' in pages[-1] and "&lt;note&gt;" in pages[-1]


def test_a_kernel_is_known_by_what_it_has(monkeypatch: Any) -> None:
    assert not in_notebook()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook() and isinstance(displays.display_for(bar=True), displays.Notebook)
    assert isinstance(displays.display_for(bar=False), displays.Lines)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook() and isinstance(displays.display_for(bar=True), displays.Lines)
