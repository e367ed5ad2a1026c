"""The command ``functional-bp demo``: train on handwritten digits, gradients compared first."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from functional_bp.demo import network
from functional_bp.demo.compare import Difference, compare
from functional_bp.demo.digits import Digits, MissingExtraError, Part, batches, load_digits
from functional_bp.demo.report import Report, Result
from functional_bp.errors import NonFiniteError
from functional_bp.train import Callback, DataParallel, EarlyStopping, fit
from functional_bp.transforms import grad

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
    weights: network.Weights, batch: Part, weight_decay: float, layout: DataParallel
) -> Comparison:
    """∂J/∂W1 and ∂J/∂W2: ours over all devices, ``jax.grad`` and the equations on one."""
    objective = partial(network.objective, weight_decay=weight_decay)
    with jax.default_matmul_precision("highest"):  # so that only rounding differs, on any device
        ours = jax.jit(grad(objective))(layout.replicate(weights), layout.split(batch))
        theirs = jax.jit(jax.grad(objective))(weights, batch)
        hand = jax.jit(network.hand_gradients)(weights, batch, weight_decay)
    return Comparison(compare(ours, theirs), compare(ours, hand))


def train(
    args: argparse.Namespace,
    digits: Digits,
    layout: DataParallel,
    batch_size: int,
    report: Report,
) -> Result:
    """Compare the gradients, then train until the validation loss stops falling."""
    weights = network.initial_weights(args.seed, args.width)
    first = next(batches(digits.training, batch_size, np.random.default_rng(args.seed)))
    comparison = compare_gradients(weights, first, args.weight_decay, layout)
    report.comparison(*comparison)

    def objective(weights: network.Weights, batch: Part) -> Any:
        return network.objective(weights, batch, args.weight_decay), {
            "L": network.loss(weights, batch)
        }

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
        held_out_accuracy=float(network.accuracy(state.params, digits.held_out)),
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
