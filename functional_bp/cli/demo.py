"""The command ``functional-bp demo``: train on handwritten digits, gradients compared first."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from functional_bp.engine.transforms import grad
from functional_bp.errors import NonFiniteError
from functional_bp.train import Callback, DataParallel, EarlyStopping, fit

# How far two gradients are apart, parameter by parameter.

# Both sum the same products in another order: a rounding error of 6e-8 at each of some hundred
# additions, most of which cancel, stays well below this.
RELATIVE_TOLERANCE = 1e-5


class Difference(NamedTuple):
    """One parameter's gradient against a witness of it.

    Attributes:
        name: the parameter's path.
        shape: of parameter and gradient.
        norm: ‖ours‖, the Euclidean norm over all entries.
        largest: max |ours − witness|.
        relative: ‖ours − witness‖ / ‖witness‖.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    largest: float
    relative: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by rounding alone (not a number never agrees)."""
        return self.relative <= RELATIVE_TOLERANCE


def compare(ours: Any, witness: Any) -> list[Difference]:
    """One row per array of the pytree ``ours``; ``witness`` has the same structure."""
    rows = []
    others = jax.tree.leaves(witness)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(ours), others, strict=True):
        a, b = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        apart, norm = np.linalg.norm(a - b), np.linalg.norm(b)
        rows.append(
            Difference(
                name=jax.tree_util.keystr(path, simple=True, separator="."),
                shape=a.shape,
                norm=float(np.linalg.norm(a)),
                largest=float(np.max(np.abs(a - b), initial=0.0)),
                relative=float(apart / norm if norm else apart),
            )
        )
    return rows


# The UCI handwritten digits that scikit-learn ships: 1797 images of 8×8 pixels, ten classes.


class MissingExtraError(ImportError):
    """A package of one of the extras is not installed."""


class Part(NamedTuple):
    """Images ``f32[b,64]``, one a row, and their labels ``i32[b]``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Digits(NamedTuple):
    """Three parts without overlap, with the classes in equal proportion."""

    training: Part
    validation: Part
    held_out: Part


def load_digits(seed: int, validation: float = 0.1, held_out: float = 0.2) -> Digits:
    """Load and split the digits; pixels scaled to [0, 2], the training mean taken away.

    Args:
        seed: of the split.
        validation: the share that says when to stop.
        held_out: the share that is looked at once, after training.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed\n"
            "  to do:    pip install 'functional-bp[demo]'"
        ) from error
    images, labels = map(np.asarray, datasets.load_digits(return_X_y=True))

    def split(part: Part, share: float) -> tuple[Part, Part]:
        rows = np.arange(len(part))
        chosen = model_selection.train_test_split(
            rows, test_size=share, stratify=part.labels, random_state=seed
        )
        first, second = (Part(part.images[c], part.labels[c]) for c in chosen)
        return first, second

    rest, last = split(Part(images, labels), held_out)
    training, middle = split(rest, validation / (1 - held_out))
    mean = training.images.mean(axis=0)
    parts = (
        Part(((part.images - mean) / 8).astype(np.float32), part.labels.astype(np.int32))
        for part in (training, middle, last)
    )
    return Digits(*parts)


def batches(part: Part, batch_size: int, rng: np.random.Generator) -> Iterator[Part]:
    """One epoch in random order; images that do not fill a batch wait for the next epoch."""
    order = rng.permutation(len(part))
    for first in range(0, len(part) - batch_size + 1, batch_size):
        chosen = order[first : first + batch_size]
        yield Part(part.images[chosen], part.labels[chosen])


# What ``functional-bp demo`` prints: for a terminal, for a file, or as JSON.

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


# A network with one hidden layer and weight decay, and its gradients by hand.
#
# Forward, for one image x ∈ ℝ^64 with label y, φ = relu and weight decay λ::
#
#     z = W1 x     h = φ(z)     o = W2 h
#     L = cross entropy(o, y) = log Σᵢ exp(oᵢ) − o_y
#     s = λ/2 (‖W1‖²_F + ‖W2‖²_F)
#     J = L + s
#
# Backward, from J to the weights (the chain rule, applied from the output to the input)::
#
#     ∂J/∂L = 1                  ∂J/∂s = 1
#     ∂J/∂o = softmax(o) − e_y
#     ∂J/∂W2 = ∂J/∂o hᵀ + λ W2
#     ∂J/∂h = W2ᵀ ∂J/∂o
#     ∂J/∂z = ∂J/∂h ⊙ φ'(z)
#     ∂J/∂W1 = ∂J/∂z xᵀ + λ W1
#
# Over a batch, L is the mean of the images' losses, so ∂J/∂o carries a factor 1/b.

PIXELS, CLASSES = 64, 10


class Weights(NamedTuple):
    """``W1: f32[d,64]`` and ``W2: f32[10,d]``, with d hidden units."""

    W1: Array
    W2: Array


def initial_weights(seed: int, width: int) -> Weights:
    """Draw from N(0, 2/n) and N(0, 1/n), n inputs a unit: z and o keep the scale of x."""
    first, second = jax.random.split(jax.random.key(seed))
    return Weights(
        W1=jax.random.normal(first, (width, PIXELS)) * (2 / PIXELS) ** 0.5,
        W2=jax.random.normal(second, (CLASSES, width)) * (1 / width) ** 0.5,
    )


def scores(weights: Weights, images: Array) -> Array:
    """o = W2 φ(W1 x) for every image, ``f32[b,10]``."""
    return jax.nn.relu(images @ weights.W1.T) @ weights.W2.T


def loss(weights: Weights, batch: Any) -> Array:
    """L, the mean cross entropy of a batch, in nats."""
    images, labels = batch
    log_probabilities = jax.nn.log_softmax(scores(weights, images))
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def penalised_loss(weights: Weights, batch: Any, weight_decay: float) -> Array:
    """J = L + λ/2 (‖W1‖²_F + ‖W2‖²_F)."""
    squares = jnp.sum(weights.W1**2) + jnp.sum(weights.W2**2)
    return loss(weights, batch) + weight_decay / 2 * squares


def hand_gradients(weights: Weights, batch: Any, weight_decay: float) -> Weights:
    """∂J/∂W1 and ∂J/∂W2 by the equations above, without automatic differentiation."""
    images, labels = batch
    z = images @ weights.W1.T
    h = jax.nn.relu(z)
    o = h @ weights.W2.T
    o_bar = (jax.nn.softmax(o) - jax.nn.one_hot(labels, CLASSES)) / len(images)
    h_bar = o_bar @ weights.W2
    z_bar = h_bar * (z > 0)
    return Weights(
        W1=z_bar.T @ images + weight_decay * weights.W1,
        W2=o_bar.T @ h + weight_decay * weights.W2,
    )


def accuracy(weights: Weights, batch: Any) -> Array:
    """The share of images whose label has the largest score."""
    images, labels = batch
    return jnp.mean(jnp.argmax(scores(weights, images), axis=1) == labels)


SMALLEST_GAIN = 1e-4  # in nats; a smaller fall of the validation loss counts as none


class UsageError(Exception):
    """The options do not fit together, or do not fit this machine."""


def number(
    kind: Callable[[str], Any], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """An argparse type: a number in [low, high), or in (low, high) with ``above``."""
    words = "a whole number" if kind is int else "a number"
    limits = f"above {low}" if above else f"of at least {low}"
    limits += f" and below {high}" if high < math.inf else ""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if above else low <= value) or not value < high:
            raise argparse.ArgumentTypeError(f"must be {words} {limits}, got {text!r}")
        return value

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    at_least_one = number(int, 1)
    options = [
        ("--width", at_least_one, 256, "hidden units"),
        ("--epochs", at_least_one, 200, "train for so many at most"),
        ("--patience", at_least_one, 10, "stop after so many without a lower validation loss"),
        ("--batch-size", at_least_one, 64, "images a step"),
        ("--learning-rate", number(float, 0, above=True), 3e-3, "of Adam"),
        ("--weight-decay", number(float, 0), 1e-3, "λ in s = λ/2 (‖W1‖² + ‖W2‖²)"),
        ("--seed", number(int, 0, 2**32), 0, "of the split, the first weights and the order"),
    ]
    for name, kind, default, what in options:
        parser.add_argument(
            name, type=kind, default=default, metavar="N", help=f"{what} (%(default)s)"
        )
    parser.add_argument(
        "--devices",
        type=at_least_one,
        metavar="N",
        help="split every batch over so many devices; where the machine has fewer, processors are "
        "simulated (default: all there are)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Train, and print what happened; the exit status."""
    try:
        devices = choose_devices(args.devices)
        batch_size = fitting_batch_size(args.batch_size, len(devices))
        digits = load_digits(args.seed)
        if batch_size > len(digits.training):
            raise UsageError(
                f"--batch-size {args.batch_size} is more than the {len(digits.training)} images "
                "there are for training"
            )
    except (UsageError, MissingExtraError) as error:
        print(f"functional-bp demo: error: {error}", file=sys.stderr)
        return 2
    report = Report(args, quiet=args.json)
    report.opening(digits, devices, batch_size)
    result = train(args, digits, DataParallel.over(devices), batch_size, report)
    report.closing(result)
    return 0 if result.succeeded else 1


def choose_devices(count: int | None) -> list[Any]:
    """All devices of the default kind, or ``count`` of them, or as many simulated processors.

    Raises:
        UsageError: there are fewer, and it is too late to simulate more.
    """
    if count is None:
        return jax.devices()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # a backend is in use already: its number of devices stands
        pass
    devices = jax.devices() if len(jax.devices()) >= count else jax.devices("cpu")
    if len(devices) < count:
        raise UsageError(f"--devices {count}, but this process has {len(devices)} already in use")
    return devices[:count]


def fitting_batch_size(batch_size: int, device_count: int) -> int:
    """The largest size up to ``batch_size`` that the devices divide evenly.

    Raises:
        UsageError: there would be no image for some device.
    """
    if batch_size < device_count:
        raise UsageError(
            f"--batch-size {batch_size} cannot be split over {device_count} devices: "
            "give at least one image to each"
        )
    return batch_size - batch_size % device_count


class Comparison(NamedTuple):
    """Our gradient of J on one batch against two witnesses."""

    with_jax: list[Difference]
    by_hand: list[Difference]


def compare_gradients(
    weights: Weights, batch: Part, weight_decay: float, layout: DataParallel
) -> Comparison:
    """∂J/∂W1 and ∂J/∂W2: ours over all devices, ``jax.grad`` and the equations on one."""
    objective = partial(penalised_loss, weight_decay=weight_decay)
    with jax.default_matmul_precision("highest"):  # so that only rounding differs, on any device
        ours = jax.jit(grad(objective))(layout.replicate(weights), layout.split(batch))
        theirs = jax.jit(jax.grad(objective))(weights, batch)
        hand = jax.jit(hand_gradients)(weights, batch, weight_decay)
    return Comparison(compare(ours, theirs), compare(ours, hand))


def train(
    args: argparse.Namespace,
    digits: Digits,
    layout: DataParallel,
    batch_size: int,
    report: Report,
) -> Result:
    """Compare the gradients, then train until the validation loss stops falling."""
    weights = initial_weights(args.seed, args.width)
    first = next(batches(digits.training, batch_size, np.random.default_rng(args.seed)))
    comparison = compare_gradients(weights, first, args.weight_decay, layout)
    report.comparison(*comparison)

    def objective(weights: Weights, batch: Part) -> Any:
        return penalised_loss(weights, batch, args.weight_decay), {"L": loss(weights, batch)}

    stopping = EarlyStopping("val_L", patience=args.patience, min_delta=SMALLEST_GAIN, mode="min")
    value = math.nan
    with report.progress(args.epochs) as advance:
        watch = Watch(advance)
        try:
            state, history = fit(
                objective, weights, digits.training, optimizer=optax.adam(args.learning_rate),
                epochs=args.epochs, batch_size=batch_size, drop_last=True, seed=args.seed,
                validation_data=digits.validation, callbacks=[stopping, watch], verbose=0,
                devices=list(layout.mesh.devices.flat),
            )  # fmt: skip
            value = history["loss"][-1]
        except NonFiniteError as error:
            state, history = error.state, error.history
    return Result(
        comparison=comparison.with_jax + comparison.by_hand,
        epochs=watch.epochs,
        best_epoch=(stopping.best_epoch or 0) + 1,
        steps=int(state.step),
        objective=value,
        validation_loss=math.nan if stopping.best is None else stopping.best,
        held_out_accuracy=float(accuracy(state.params, digits.held_out)),
        held_out_images=len(digits.held_out),
        compile_seconds=watch.compile_seconds,
        train_seconds=watch.seconds,
        devices=layout.mesh.size,
        patience_ended=stopping.stopped_epoch is not None,
    )


class Watch(Callback):
    """Moves the bar of the report, and looks at the clock."""

    def __init__(self, advance: Callable[[int, float, float], None]) -> None:
        self._advance, self._started = advance, time.perf_counter()
        self.epochs, self.compile_seconds, self.seconds = 0, 0.0, 0.0

    def on_step_end(self, run: Any, step: int) -> None:
        """The first step was compiled before it ran."""
        if not self.compile_seconds:
            jax.block_until_ready(run.state.params)
            self.compile_seconds = time.perf_counter() - self._started

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """Count it."""
        self.epochs = epoch + 1

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Show J of the epoch and the validation loss behind it."""
        self._advance(epoch + 1, logs["loss"], logs["val_L"])

    def on_fit_end(self, run: Any) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._started
