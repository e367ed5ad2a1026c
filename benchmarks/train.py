"""Training steps a second beside plain JAX, Keras, Flax NNX and PyTorch: one run, interleaved.

Every figure is one of several repeats in turns, and a ratio is the median of the ratios of
neighbours. ``fit`` is timed epoch by epoch, with the bare step after each of its epochs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.timing import median_ratio
from benchmarks.trainers import LeftOutError, Trainer, in_jax, in_keras, in_nnx, in_torch
from benchmarks.trainers.tasks import Task, tasks

AGREED = 5  # steps after which the losses of all sides are compared
SAMPLE_SECONDS = 0.05  # what one sample takes at least
EPOCH_SECONDS = 0.25
REST_SECONDS = 0.1  # for threads of the side before, which wait for work without sleeping


class Side(NamedTuple):
    """Who takes steps, the package that it needs, and how to install that."""

    trainer: Callable[[Task], Trainer]
    package: str = ""
    install: str = ""


SIDES = {
    "jax": Side(in_jax.plain),
    "step": Side(in_jax.step),
    "keras": Side(in_keras.train_on_batch, "keras", "pip install keras"),
    "nnx": Side(in_nnx.trainer, "flax", "pip install flax"),
    "torch": Side(in_torch.eager, "torch", "pip install torch"),
    "torch compiled": Side(in_torch.compiled, "torch", "pip install torch"),
}
FITS = {"fit": (in_jax.fit_epochs, ""), "keras fit": (in_keras.fit_epochs, "keras")}
PARTS = {"ready": in_jax.fit_ready, "unchecked": in_jax.fit_unchecked}  # fit that does less


def measure(
    chosen: Mapping[str, Callable[[], Task]],
    repeats: int,
    sample_seconds: float = SAMPLE_SECONDS,
    epoch_seconds: float = EPOCH_SECONDS,
) -> dict[str, Any]:
    """Every task by every side that is installed.

    Args:
        chosen: the tasks by name.
        repeats: how many samples of each figure.
        sample_seconds: how long the steps of a sample take at least, of plain JAX.
        epoch_seconds: the same of an epoch of ``fit``.

    Returns:
        ``rows``, one a task, and ``left_out``: side -> why, and what to do.
    """
    left_out = {
        name: f"not installed: {side.install}"
        for name, side in SIDES.items()
        if side.package and importlib.util.find_spec(side.package) is None
    }
    rows = [
        _row(name, make(), repeats, sample_seconds, epoch_seconds, left_out)
        for name, make in chosen.items()
    ]
    return {"device": jax.devices()[0].device_kind, "rows": rows, "left_out": left_out}


def _row(
    name: str,
    task: Task,
    repeats: int,
    sample_seconds: float,
    epoch_seconds: float,
    left_out: dict[str, str],
) -> dict[str, Any]:
    trainers, losses = _started(name, task, left_out)
    seconds = {side: _seconds(take, 3) for side, take in trainers.items()}["jax"]
    calls = max(1, int(sample_seconds / seconds))
    samples: dict[str, list[float]] = {side: [] for side in trainers}
    for i in range(repeats):
        order = list(trainers)[i % len(trainers) :] + list(trainers)[: i % len(trainers)]
        for side in order:
            time.sleep(REST_SECONDS)
            trainers[side](1)
            samples[side].append(_seconds(trainers[side], calls))
    expected = losses["jax"]
    row = {
        "model": name,
        "losses": losses,
        "largest_difference": max(abs(v - expected) / abs(expected) for v in losses.values()),
        "step_seconds": {s: statistics.median(values) for s, values in samples.items()},
        "speed": {s: median_ratio(samples["jax"], values) for s, values in samples.items()},
    }
    bare = {"jax": trainers["jax"], "step": trainers["step"]}
    steps = max(1, int(epoch_seconds / seconds))
    for fit, (epochs, package) in FITS.items():
        if not package or package in trainers:
            row[fit] = _fit_seconds(task, epochs, bare, steps, repeats)
    for part, epochs in PARTS.items():
        row[part] = _fit_seconds(task, epochs, bare, steps, repeats)
    return row


def _started(
    name: str, task: Task, left_out: dict[str, str]
) -> tuple[dict[str, Trainer], dict[str, float]]:
    """Each side's trainer after its first steps, compiled, and its loss at the last of them."""
    trainers, losses = {}, {}
    for side, (make, package, _) in SIDES.items():
        if side in left_out and left_out[side].startswith("not installed"):
            continue
        try:
            trainers[side] = make(task)
            losses[side] = trainers[side](AGREED)
        except Exception as error:
            if not package:  # ours
                raise
            trainers.pop(side, None)
            why = str(error).splitlines()[0] if str(error) else ""
            what = why if isinstance(error, LeftOutError) else f"{type(error).__name__}: {why}"
            left_out[f"{side} of {name}"] = what
    return trainers, losses


def _seconds(take: Trainer, count: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def _fit_seconds(
    task: Task,
    epochs: Callable[[Task, int, int, Callable[[], None]], Sequence[float]],
    bare: Mapping[str, Trainer],
    steps: int,
    repeats: int,
) -> dict[str, float]:
    """Seconds a step of ``fit``, and what it adds to the bare step.

    Args:
        task: what is trained.
        epochs: trains so many steps an epoch for so many epochs, calls a function after each, and
            returns their seconds.
        bare: plain JAX's step and ours, for as many steps after each epoch.
        steps: of an epoch.
        repeats: how many epochs are measured, after a first that compiles.
    """
    between: dict[str, list[float]] = {side: [] for side in bare}

    def after_epoch() -> None:
        for side, take in bare.items():
            between[side].append(_seconds(take, steps))

    found = [seconds / steps for seconds in epochs(task, steps, repeats + 1, after_epoch)][1:]
    plain, step = between["jax"][1:], between["step"][1:]
    return {
        "step_seconds": statistics.median(found),
        "speed": median_ratio(plain, found),
        "added_seconds": statistics.median(f - b for f, b in zip(found, step, strict=True)),
        "added_ratio": median_ratio(found, step) - 1,
        "steps": steps,
    }


def table(found: Mapping[str, Any]) -> str:
    """Steps a second as ratios to plain JAX's, and what ``fit`` adds to a step."""
    rows, fits = found["rows"], list(FITS)
    sides = [side for side in SIDES if any(side in row["speed"] for row in rows)]
    lines = [["model", "jax", *sides[1:], *fits, "fit adds", "", *PARTS, "losses"]]
    for row in rows:
        speeds = [row["speed"].get(side) for side in sides[1:]]
        speeds += [row[fit]["speed"] if fit in row else None for fit in fits]
        lines.append(
            [row["model"], f"{row['step_seconds']['jax'] * 1e3:.2f} ms",
             *("-" if speed is None else f"{speed:.2f}" for speed in speeds),
             f"{row['fit']['added_seconds'] * 1e6:+.0f} µs",
             f"{row['fit']['added_ratio'] * 100:+.1f} %",
             *(f"{row[part]['added_seconds'] * 1e6:+.0f} µs" for part in PARTS),
             f"{row['largest_difference']:.0e}"]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    about = (
        f"Training steps a second over those of plain JAX with optax, jax {jax.__version__} on "
        f"{found['device']}; above 1 is faster.\n"
        "ready: what fit adds where batches are on the device already\n"
        "unchecked: the same, where no number is tested for being finite\n"
        f"losses: the largest difference of a side's loss from plain JAX's at step {AGREED}\n"
        "PyTorch runs with one thread or all of them, whichever is faster"
    )
    shown = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    missing = [f"left out: {side} ({why})" for side, why in found["left_out"].items()]
    return "\n".join([about, "", *shown, *([""] if missing else []), *missing])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks train``."""
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only these models")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default 9)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success, 2 if an option is wrong."""
    unknown = sorted(set(args.only or ()) - set(tasks))
    if args.repeats < 1 or unknown:
        wrong = f"no model {unknown[0]!r}; there are {', '.join(tasks)}" if unknown else ""
        print(f"python -m benchmarks: {wrong or '--repeats must be at least 1'}", file=sys.stderr)
        return 2
    found = measure({name: tasks[name] for name in args.only or tasks}, args.repeats)
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0
