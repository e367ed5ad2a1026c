"""The command ``functional-bp demo`` trains a network to read digits, its gradients compared first.

The network is that of *Dive into Deep Learning*, section 5.3: one hidden layer and weight decay λ.
Forward, for one image x ∈ ℝ^64 with label y::

    z = W1 x     h = relu(z)     o = W2 h
    L = cross entropy(o, y) = log Σᵢ exp(oᵢ) − o_y
    s = λ/2 (‖W1‖²_F + ‖W2‖²_F)
    J = L + s

Backward, by the chain rule from J to the weights::

    ∂J/∂o = softmax(o) − e_y       ∂J/∂W2 = ∂J/∂o hᵀ + λ W2
    ∂J/∂h = W2ᵀ ∂J/∂o
    ∂J/∂z = ∂J/∂h ⊙ relu'(z)       ∂J/∂W1 = ∂J/∂z xᵀ + λ W1

Over a batch, L is the mean of the images' losses, so that ∂J/∂o has a factor 1/b.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from rich.console import Console

from functional_bp import train
from functional_bp.cli.shared import refuse
from functional_bp.engine.transforms import grad
from functional_bp.errors import BackpropError, NonFiniteError
from functional_bp.tables import text
from functional_bp.tables.table import Cell, Column, Line, Table
from functional_bp.train.devices import Placement, over_devices

PIXELS, CLASSES = 64, 10
Weights = dict[str, Array]  # W1: f32[d,64] and W2: f32[10,d], with d hidden units
# Two gradients sum the same products in another order: a rounding error of 6e-8 at each of some
# hundred additions, most of which cancel, stays well below this.
RELATIVE_TOLERANCE = 1e-5

OPENING = """\
[bold]A network with one hidden layer learns to read digits[/bold]
  data       {total} handwritten digits of 8×8 pixels
             (UCI, scikit-learn): {training} to train on,
             {validation} to know when to stop, {held_out} held out
  network    z = W1 x, h = relu(z), o = W2 h;
             W1 {width}×64, W2 10×{width}
  objective  J = L + s,  L = cross entropy(o, y),
             s = λ/2 (‖W1‖² + ‖W2‖²),  λ = {weight_decay:g}
  devices    {where}
"""
MEANING = """\
agrees: relative difference at most {tolerance:.0e}

Training: loss is J, val_loss is J of the validation images
"""
CLOSING = """
Stopped after {epochs} epochs, {steps} steps:
{why}.
  objective J        {objective:.4f} nats, the last epoch's mean
  validation loss L  {validation_loss:.4f} nats at epoch {best_epoch},
                     whose weights are kept
  held-out accuracy  [bold]{held_out_accuracy:.1%}[/bold], {right} of {held_out_images} images
  time               {train_seconds:.1f} s, {compile_seconds:.1f} s of it for the first
                     epoch, in which the step is compiled
"""
NEXT = """What to try next
  functional-bp demo --width 16
      how few hidden units are enough?
  functional-bp demo --weight-decay 0
      what does the penalty s do?
  functional-bp demo --devices {other}
      the batch divided over another number of devices
  functional-bp rules max
      a rule: its derivation, what it keeps
  and in your own code: import functional_bp as bp,
      bp.grad for jax.grad"""
DIVERGED = """[bold red]The loss is no longer a finite number[/bold red] after epoch {epochs}:
try a smaller --learning-rate."""


class DemoError(BackpropError):
    """The options do not fit together or this machine, or the digits are not installed."""


def initial_weights(seed: int, width: int) -> Weights:
    """Draw W1 from N(0, 2/n), W2 from N(0, 1/n), n inputs a unit: z and o keep the scale of x."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "W1": jax.random.normal(first, (width, PIXELS)) * (2 / PIXELS) ** 0.5,
        "W2": jax.random.normal(second, (CLASSES, width)) * (1 / width) ** 0.5,
    }


def scores(weights: Weights, images: Array) -> Array:
    """Compute o = W2 relu(W1 x) for every image, ``f32[b,10]``."""
    return jax.nn.relu(images @ weights["W1"].T) @ weights["W2"].T


def loss(weights: Weights, batch: Any) -> Array:
    """Compute L, the mean cross entropy of a batch ``(images, labels)``, in nats."""
    log_probabilities = jax.nn.log_softmax(scores(weights, batch[0]))
    return -jnp.take_along_axis(log_probabilities, batch[1][:, None], axis=1).mean()


def penalised_loss(weights: Weights, batch: Any, weight_decay: float) -> Array:
    """Compute J = L + λ/2 (‖W1‖²_F + ‖W2‖²_F)."""
    squares = jnp.sum(weights["W1"] ** 2) + jnp.sum(weights["W2"] ** 2)
    return loss(weights, batch) + weight_decay / 2 * squares


def hand_gradients(weights: Weights, batch: Any, weight_decay: float) -> Weights:
    """Compute ∂J/∂W1 and ∂J/∂W2 by the equations above, without automatic differentiation."""
    x, labels = batch
    z = x @ weights["W1"].T
    h = jax.nn.relu(z)
    o = h @ weights["W2"].T
    o_bar = (jax.nn.softmax(o) - jax.nn.one_hot(labels, CLASSES)) / len(x)
    z_bar = o_bar @ weights["W2"] * (z > 0)
    bars = {"W1": z_bar.T @ x, "W2": o_bar.T @ h}
    return {name: bar + weight_decay * weights[name] for name, bar in bars.items()}


def load_digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Load the UCI digits of scikit-learn, split 7 : 1 : 2 with the classes in equal proportion.

    Returns:
        Images ``f32[b,64]`` without the training mean, and labels ``i32[b]``, by part.

    Raises:
        DemoError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        what = "the digits come with scikit-learn, which is not installed"
        raise DemoError(what, do="pip install 'functional-bp[demo]'") from error
    split = partial(model_selection.train_test_split, random_state=seed)
    x, y = map(np.asarray, datasets.load_digits(return_X_y=True))
    x, x_held_out, y, y_held_out = split(x, y, test_size=0.2, stratify=y)
    x, x_validation, y, y_validation = split(x, y, test_size=0.125, stratify=y)
    mean = np.mean(x, axis=0)
    scaled = lambda x, y: (((x - mean) / 8).astype(np.float32), y.astype(np.int32))
    return {
        "training": scaled(x, y),
        "validation": scaled(x_validation, y_validation),
        "held_out": scaled(x_held_out, y_held_out),
    }


def compare(ours: Any, witness: Any, witness_name: str = "") -> list[dict[str, Any]]:
    """Compare each array of a pytree with the witness's.

    Returns:
        For each its ``name``, its ``shape``, ``norm`` ‖ours‖, ``largest`` max |ours − witness|,
        ``relative`` ‖ours − witness‖ / ‖witness‖, and whether it ``agrees`` but for rounding.
    """
    rows = []
    others = jax.tree.leaves(witness)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(ours), others, strict=True):
        a, b = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        apart, norm = np.linalg.norm(a - b), np.linalg.norm(b)
        relative = float(apart / norm if norm else apart)
        rows.append(
            {"name": jax.tree_util.keystr(path, simple=True, separator="."), "shape": a.shape,
             "norm": float(np.linalg.norm(a)), "witness": witness_name,
             "largest": float(np.max(np.abs(a - b), initial=0)), "relative": relative,
             "agrees": relative <= RELATIVE_TOLERANCE}
        )  # fmt: skip
    return rows


def compared_gradients(
    weights: Weights, batch: Any, weight_decay: float, devices: list[Any]
) -> list[dict[str, Any]]:
    """Compare our ∂J/∂W1 and ∂J/∂W2, over all devices, with JAX's and with the equations."""
    objective = partial(penalised_loss, weight_decay=weight_decay)
    placement = Placement(over_devices(devices))
    with jax.default_matmul_precision("highest"):  # so that only rounding differs, on any device
        ours = jax.jit(grad(objective))(placement.replicate(weights), placement.split(batch))
        theirs = jax.jit(jax.grad(objective))(weights, batch)
        hand = jax.jit(hand_gradients)(weights, batch, weight_decay)
    return compare(ours, theirs, "jax.grad") + compare(ours, hand, "equations by hand")


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Set the rows of ``compare`` as a table."""
    columns = (
        Column("gradient"), Column("norm", "right", 1), Column("compared with"),
        Column("max |diff|", "right", 2), Column("relative", "right"), Column(""),
    )  # fmt: skip
    lines = []
    for row in rows:
        words = (f"∂J/∂{row['name']}", f"{row['norm']:.4f}", row["witness"],
                 f"{row['largest']:.1e}", f"{row['relative']:.1e}")  # fmt: skip
        verdict = Cell("agrees", "right") if row["agrees"] else Cell("DIFFERS", "wrong")
        lines.append(Line("gradient", (*map(Cell, words), verdict)))
    return Table("Gradients of J before the first step, on one batch", columns, tuple(lines))


def number(
    kind: Callable[[str], Any], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """Make a type for argparse: a number in [low, high), or in (low, high) with ``above``."""
    limits = f"above {low}" if above else f"of at least {low}"
    limits += f" and below {high}" if high < math.inf else ""

    def parse(given: str) -> Any:
        try:
            value = kind(given)
            if (low < value if above else low <= value) and value < high:
                return value
        except ValueError:
            pass
        words = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {words} {limits}, got {given!r}")

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
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
        about = f"{what} (%(default)s)"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=about)
    about = "split every batch over so many devices; where the machine has fewer, processors are "
    about += "simulated (default: all there are)"
    parser.add_argument("--devices", type=at_least_one, metavar="N", help=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Compare the gradients, train, print what happened, and return the exit status."""
    try:
        devices = choose_devices(args.devices)
        digits = load_digits(args.seed)
        sizes = {name: len(labels) for name, (_, labels) in digits.items()}
        batch_size = args.batch_size - args.batch_size % len(devices)  # equal shares
        if not batch_size:
            raise DemoError(
                f"--batch-size {args.batch_size} cannot be split over {len(devices)} devices: "
                "give at least one image to each"
            )
        if batch_size > sizes["training"]:
            there = f"the {sizes['training']} images there are for training"
            raise DemoError(f"--batch-size {args.batch_size} is more than {there}")
    except DemoError as error:
        return refuse("demo", f"error: {error}")
    console = Console(highlight=False, quiet=args.json)
    where = f"{len(devices)} × {devices[0].platform}, batches of {batch_size} images"
    if len(devices) > 1:
        where += f", {batch_size // len(devices)} on each"
    if batch_size != args.batch_size:
        where += f"\n             ({args.batch_size} made {batch_size}, for equal shares)"
    total = sum(sizes.values())
    console.print(OPENING.format(**vars(args), **sizes, total=total, where=where))
    weights = initial_weights(args.seed, args.width)
    first = jax.tree.map(lambda x: x[:batch_size], digits["training"])
    comparison = compared_gradients(weights, first, args.weight_decay, devices)
    agree = all(row["agrees"] for row in comparison)
    color = console.is_terminal and not console.no_color
    console.print(text.text((comparison_table(comparison),), console.width, color))
    console.print(MEANING.format(tolerance=RELATIVE_TOLERANCE))
    result = fitted(args, digits, devices, batch_size, weights)
    diverged = result["objective"] is None
    if args.json:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in result.items()
        }
        print(json.dumps({"comparison": comparison, **finite, "gradients_agree": agree}, indent=2))
    elif diverged:
        console.print(DIVERGED.format(**result))
    else:
        why = f"J of the validation images has not fallen for {args.patience} epochs"
        why = why if result["patience_ended"] else "the limit of --epochs was reached"
        right = round(result["held_out_accuracy"] * result["held_out_images"])
        console.print(CLOSING.format(**result, why=why, right=right))
        wrong = "[bold red]A gradient differs from its witness[/bold red], above."
        other = 8 if len(devices) == 1 else 1
        console.print(NEXT.format(other=other) if agree else wrong)
    return int(diverged or not agree)


def choose_devices(count: int | None) -> list[Any]:
    """Choose all devices of the default kind, or ``count`` of them, or as many simulated ones.

    Raises:
        DemoError: there are fewer, and it is too late to simulate more.
    """
    if count is None:
        return jax.devices()
    with contextlib.suppress(RuntimeError):  # a backend is in use already: its number stands
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices() if len(jax.devices()) >= count else jax.devices("cpu")
    if len(devices) < count:
        raise DemoError(f"--devices {count}, but this process has {len(devices)} already in use")
    return devices[:count]


def fitted(
    args: argparse.Namespace, digits: Any, devices: list[Any], batch_size: int, weights: Weights
) -> dict[str, Any]:
    """Train until J of the validation images stops falling.

    Returns:
        What came out, by name; ``objective`` is None where it became infinite or not a number.
    """
    stopping = train.EarlyStopping("val_loss", patience=args.patience, min_delta=1e-4)
    started, failed = time.perf_counter(), False
    try:
        state, history = train.fit(
            partial(penalised_loss, weight_decay=args.weight_decay), weights, *digits["training"],
            optimizer=optax.adam(args.learning_rate), epochs=args.epochs, batch_size=batch_size,
            drop_last=True, seed=args.seed, validation_data=digits["validation"],
            callbacks=[stopping], devices=devices, verbose=0 if args.json else "auto",
        )  # fmt: skip
    except NonFiniteError as error:
        state, history, failed = error.state, error.history, True
    images, labels = digits["held_out"]
    is_right = jnp.argmax(scores(state.params, images), axis=1) == labels
    return {
        "epochs": len(history.epochs) + failed,
        "best_epoch": (stopping.best_epoch or 0) + 1,
        "steps": int(state.step),
        "objective": None if failed else history["loss"][-1],
        "validation_loss": float(loss(state.params, digits["validation"])),
        "held_out_accuracy": float(jnp.mean(is_right)),
        "held_out_images": len(labels),
        "compile_seconds": history.rows[0]["seconds"] if history.rows else 0.0,
        "train_seconds": time.perf_counter() - started,
        "devices": len(devices),
        "patience_ended": stopping.stopped_epoch is not None,
    }
