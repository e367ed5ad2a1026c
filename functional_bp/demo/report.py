"""What ``functional-bp demo`` prints: for a terminal, for a file, or as JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from functional_bp.demo.compare import RELATIVE_TOLERANCE, Difference
from functional_bp.demo.digits import Digits

LINES_WITHOUT_TERMINAL = 10  # of progress, over all epochs

Advance = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        comparison: every parameter's gradient against every witness.
        epochs: how many were run.
        best_epoch: the one whose weights were kept.
        steps: of the optimizer.
        objective: J of the last epoch, the mean over its steps.
        validation_loss: L of the weights kept.
        held_out_accuracy: of the weights kept, as a share.
        held_out_images: how many it was measured on.
        compile_seconds: until the first step was done.
        train_seconds: all of it.
        devices: how many.
        patience_ended: whether the stopping criterion was met, not the limit of epochs.
    """

    comparison: list[Difference]
    epochs: int
    best_epoch: int
    steps: int
    objective: float
    validation_loss: float
    held_out_accuracy: float
    held_out_images: int
    compile_seconds: float
    train_seconds: float
    devices: int
    patience_ended: bool

    @property
    def gradients_agree(self) -> bool:
        """Whether every gradient agrees with every witness."""
        return all(row.agrees for row in self.comparison)

    @property
    def diverged(self) -> bool:
        """Whether a loss became infinite or not a number."""
        return not math.isfinite(self.objective)

    @property
    def succeeded(self) -> bool:
        """Whether the command ends with status 0."""
        return self.gradients_agree and not self.diverged


class Report:
    """Prints the run, part by part."""

    def __init__(self, args: argparse.Namespace, quiet: bool) -> None:
        self.args, self.quiet = args, quiet
        self.console = Console(highlight=False, quiet=quiet)

    def opening(self, digits: Digits, devices: Sequence[Any], batch_size: int) -> None:
        """What is trained, on what, and where."""
        width, decay = self.args.width, self.args.weight_decay
        sizes = [len(part) for part in digits]
        count, kind = len(devices), devices[0].platform
        share = batch_size // count
        where = f"{count} × {kind}, {share} images of every batch of {batch_size} on each"
        if count == 1:
            where = f"1 × {kind}, batches of {batch_size} images"
        if batch_size != self.args.batch_size:
            where += f"\n             ({self.args.batch_size} made {batch_size}, for equal shares)"
        self.console.print(
            "[bold]A network with one hidden layer learns to read digits[/bold]\n"
            f"  data       {sum(sizes)} handwritten digits of 8×8 pixels (UCI, scikit-learn):\n"
            f"             {sizes[0]} to train on, {sizes[1]} to know when to stop, "
            f"{sizes[2]} held out\n"
            f"  network    z = W1 x, h = relu(z), o = W2 h;  W1 {width}×64, W2 10×{width}\n"
            "  objective  J = L + s,  L = cross entropy(o, y),  s = λ/2 (‖W1‖² + ‖W2‖²),\n"
            f"             λ = {decay:g}\n"
            f"  devices    {where}\n"
        )

    def comparison(self, with_jax: list[Difference], by_hand: list[Difference]) -> None:
        """Every parameter's gradient against ``jax.grad`` and the equations."""
        table = Table(
            "gradient", "shape", "norm", "compared with", "max |diff|", "relative", "",
            title="Gradients of J before the first step, on one batch",
            title_style="bold", title_justify="left", box=None, padding=(0, 2, 0, 0),
        )  # fmt: skip
        for name in ("norm", "max |diff|", "relative"):
            next(c for c in table.columns if c.header == name).justify = "right"
        for ours, hand in zip(with_jax, by_hand):
            for row, witness in ((ours, "jax.grad"), (hand, "equations by hand")):
                first = row is ours
                table.add_row(
                    f"∂J/∂{row.name}" if first else "",
                    "×".join(map(str, row.shape)) if first else "",
                    f"{row.norm:.4f}" if first else "",
                    witness,
                    f"{row.largest:.1e}",
                    f"{row.relative:.1e}",
                    "[green]agrees[/green]" if row.agrees else "[bold red]DIFFERS[/bold red]",
                )
        self.console.print(table)
        self.console.print(f"agrees: relative difference at most {RELATIVE_TOLERANCE:.0e}\n")

    @contextmanager
    def progress(self, epochs: int) -> Iterator[Advance]:
        """A bar in a terminal, a few lines elsewhere; call the result after every epoch."""
        if not self.console.is_terminal:
            every = max(1, epochs // LINES_WITHOUT_TERMINAL)

            def show_line(epoch: int, objective: float, validation_loss: float) -> None:
                if epoch == 1 or epoch % every == 0:
                    self.console.print(
                        f"epoch {epoch:4d}/{epochs}  J {objective:.4f}  "
                        f"validation loss {validation_loss:.4f}"
                    )

            yield show_line
            return
        columns = (
            TextColumn("epoch"), MofNCompleteColumn(), BarColumn(bar_width=None),
            TextColumn("{task.description}"), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, disable=self.quiet) as bar:
            task = bar.add_task("", total=epochs)

            def move_bar(epoch: int, objective: float, validation_loss: float) -> None:
                words = f"J {objective:.4f}  validation loss {validation_loss:.4f}"
                bar.update(task, completed=epoch, description=words)

            yield move_bar

    def closing(self, result: Result) -> None:
        """How it ended, and what to try next."""
        if self.args.json:
            fields = {
                **asdict(result),
                "gradients_agree": result.gradients_agree,
                "comparison": [{**r._asdict(), "agrees": r.agrees} for r in result.comparison],
            }
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in fields.items()
            }
            print(json.dumps(finite, indent=2))
            return
        if result.diverged:
            self.console.print(
                f"[bold red]The loss is no longer a finite number[/bold red] after "
                f"epoch {result.epochs}:\ntry a smaller --learning-rate."
            )
            return
        if result.patience_ended:
            why = f"the validation loss has not fallen for {self.args.patience} epochs"
        else:
            why = "the limit of --epochs was reached"
        right = round(result.held_out_accuracy * result.held_out_images)
        self.console.print(
            f"\nStopped after {result.epochs} epochs, {result.steps} steps:\n{why}.\n"
            f"  objective J        {result.objective:.4f} nats, the last epoch's mean\n"
            f"  validation loss    {result.validation_loss:.4f} nats at epoch "
            f"{result.best_epoch}, whose weights are kept\n"
            f"  held-out accuracy  [bold]{result.held_out_accuracy:.1%}[/bold], "
            f"{right} of {result.held_out_images} images\n"
            f"  time               {result.train_seconds:.1f} s, {result.compile_seconds:.1f} s "
            "of it to compile the step\n"
        )
        if not result.gradients_agree:
            self.console.print("[bold red]A gradient differs from its witness[/bold red], above.")
            return
        other = "--devices 8" if result.devices == 1 else "--devices 1"
        self.console.print(
            "What to try next\n"
            "  functional-bp demo --width 16        how few hidden units are enough?\n"
            "  functional-bp demo --weight-decay 0  what does the penalty s do?\n"
            f"  functional-bp demo {other}       the batch split over another number\n"
            "  functional-bp rules tanh             a rule: its derivation, what it keeps\n"
            "  and in your own code: import functional_bp as bp, bp.grad for jax.grad"
        )
