"""Our transforms beside JAX's: the same models, one run, interleaved.

Compiled temporaries and flops come from the compiler and do not vary. Seconds do: both sides are
repeated in turns, and the ratio is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import functional_bp as bp
from benchmarks import timing
from benchmarks.model import Model
from benchmarks.models import models

SIDES = ("jax", "bp")


def _jax_hvp(fun: Any, primals: Any, tangents: Any) -> Any:
    return jax.jvp(jax.grad(fun), primals, tangents)[1]


def _of_first(hvp: Callable[..., Any]) -> Callable[..., Any]:
    """H v with respect to the first argument; v is the second, data follow."""
    return lambda f: lambda x, v, *data: hvp(lambda x: f(x, *data), (x,), (v,))


TRANSFORMS: dict[str, dict[str, Callable[..., Any]]] = {
    name: {"jax": getattr(jax, name), "bp": getattr(bp, name)}
    for name in ("value_and_grad", "jacfwd", "hessian")
} | {"hvp": {"jax": _of_first(_jax_hvp), "bp": _of_first(bp.hvp)}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks engine``."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these models")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default 9)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 on success, 2 if an option is wrong."""
    unknown = sorted(set(args.models or ()) - set(models))
    wrong = f"no model {unknown[0]!r}; there are {', '.join(models)}" if unknown else ""
    wrong = "--repeats must be at least 1" if args.repeats < 1 else wrong
    if wrong:
        print(f"benchmarks engine: {wrong}", file=sys.stderr)
        return 2
    rows = measure({name: models[name] for name in args.models or models}, args.repeats)
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return 0


def measure(chosen: Mapping[str, Callable[[], Model]], repeats: int) -> list[dict[str, Any]]:
    """One row per model: each figure for JAX, and ours as a ratio to it."""
    return [_row(name, make(), repeats) for name, make in chosen.items()]


def _row(name: str, model: Model, repeats: int) -> dict[str, Any]:
    loss, params, data, name_of_transform = model
    transforms = TRANSFORMS[name_of_transform]
    compiled, compile_seconds = {}, {}
    for side, transform in transforms.items():
        lowered = jax.jit(transform(loss)).lower(params, *data)
        start = time.perf_counter()
        compiled[side] = lowered.compile()
        compile_seconds[side] = time.perf_counter() - start
    values = {side: run(params, *data) for side, run in compiled.items()}
    return {
        "model": name,
        "largest_error": _largest_error(values["jax"], values["bp"]),
        "trace_seconds": _in_turns(
            {
                side: _tracer(transform, loss, params, data)
                for side, transform in transforms.items()
            },
            max(3, repeats // 2),
        ),
        "compile_seconds": _with_ratio(compile_seconds),
        "run_seconds": _in_turns(
            {s: timing.sampler(c, params, *data) for s, c in compiled.items()}, repeats
        ),
        "temporary_bytes": _with_ratio(
            {s: c.memory_analysis().temp_size_in_bytes for s, c in compiled.items()}
        ),
        "flops": _with_ratio({s: _flops(c) for s, c in compiled.items()}),
    }


def _tracer(transform: Any, loss: Any, params: Any, data: Any) -> Callable[[], float]:
    def trace() -> float:
        start = time.perf_counter()
        jax.clear_caches()
        jax.jit(transform(lambda *args: loss(*args))).lower(params, *data)
        return time.perf_counter() - start

    return trace


def _in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    samples = timing.interleaved(runs, repeats)
    medians = {side: statistics.median(values) for side, values in samples.items()}
    return {**medians, "ratio": timing.median_ratio(samples["bp"], samples["jax"])}


def _with_ratio(figures: dict[str, float]) -> dict[str, float]:
    jax_figure = figures["jax"]
    same = 1.0 if figures["bp"] == 0 else float("inf")
    return {**figures, "ratio": figures["bp"] / jax_figure if jax_figure else same}


def _flops(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float(analysis.get("flops", 0.0))


def _largest_error(expected: Any, got: Any) -> float:
    """Largest difference of any leaf, relative to the leaf's largest entry."""
    errors = [
        np.max(np.abs(np.asarray(b) - np.asarray(a))) / max(np.max(np.abs(np.asarray(a))), 1e-30)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True)
        if np.size(a)
    ]
    return float(max(errors))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as an aligned table of ratios, ours over JAX's; below 1 is less."""
    head = [
        "model",
        "error",
        "trace",
        "compile",
        "run",
        "temporaries",
        "flops",
        "jax run",
        "jax temp",
    ]
    lines = []
    for row in rows:
        ratio = lambda key: f"{row[key]['ratio']:.2f}"  # noqa: B023
        lines.append(
            [row["model"], f"{row['largest_error']:.0e}", ratio("trace_seconds"),
             ratio("compile_seconds"), ratio("run_seconds"),
             f"{row['temporary_bytes']['ratio']:.3f}", f"{row['flops']['ratio']:.3f}",
             f"{row['run_seconds']['jax'] * 1e3:.2f} ms",
             f"{row['temporary_bytes']['jax'] / 2**20:.2f} MiB"]
        )  # fmt: skip
    median = lambda key: statistics.median(row[key]["ratio"] for row in rows)
    lines.append(
        ["median", "", f"{median('trace_seconds'):.2f}", f"{median('compile_seconds'):.2f}",
         f"{median('run_seconds'):.2f}", f"{median('temporary_bytes'):.3f}",
         f"{median('flops'):.3f}", "", ""]
    )  # fmt: skip
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def show(line: list[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        return "  ".join([line[0].ljust(widths[0]), *rest])

    about = (
        f"bp.value_and_grad, or what a model names, over JAX {jax.__version__}'s on "
        f"{jax.devices()[0].device_kind}; ratios below 1 are less"
    )
    return "\n".join([about, "", show(head), *map(show, lines)])
