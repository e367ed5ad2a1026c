"""The command ``functional-bp plan`` finds how a loss is trained on several devices."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functional_bp.cli.shared import INPUTS, add_inputs, function_at, optimizer_of, refuse

if TYPE_CHECKING:
    from functional_bp.shard.planner import TrainingPlan

EPILOG = f"""\
{INPUTS}
The loss takes parameters and a batch; further arguments belong to the batch. Where there are no
such devices, processors are simulated: their bytes are those that XLA plans for a CPU. Of a TPU
topology they are those of the TPU (pip install 'functional-bp[tpu-topology]').

For example:
  functional-bp plan mymodel.py:loss --devices 8 --memory 2GiB --optimizer adam
  functional-bp plan mymodel.py:loss --devices 4 --memory 500MB --explain --save plan.html
  functional-bp plan mymodel.py:loss --devices v5e:2x2 --memory 16GiB

Exit status: 0 well, 1 nothing fits, 2 called wrongly.
"""
FORMATS = (".svg", ".html", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("target", metavar="MODULE:FUNCTION", help="a loss; FILE.py:FUNCTION")
    add_inputs(parser, "of --shape no array is made, so that any size will do")
    about = "over how many devices; or a TPU topology, such as v5e:2x2"
    add("--devices", type=_devices, required=True, metavar="N", help=about)
    add("--memory", required=True, metavar="SIZE", help="of each device, such as 16GiB")
    about = "an optimizer of optax, such as adam (the default) or sgd"
    add("--optimizer", default="adam", metavar="NAME", help=about)
    about = "take the batch in one piece, even if its parts make up its gradient"
    add("--no-microbatches", action="store_true", help=about)
    about = "tell what was tried and why it was refused, and what smaller minibatches need"
    add("--explain", action="store_true", help=about)
    about = "write the explanation there: .svg, .html or .txt; may be repeated"
    add("--save", action="append", default=[], metavar="FILE", dest="files", help=about)


def run(args: argparse.Namespace) -> int:
    """Plan, print or write it, and return the exit status."""
    from functional_bp.errors import BackpropError

    try:
        simulate(args.devices if isinstance(args.devices, int) else 1)
        plan = _plan(args)
        if plan is None:
            return 1
        for file in args.files:
            _save(plan, file)
        print(plan.explain() if args.explain else plan)
        return 0
    except BackpropError as error:
        return refuse("plan", error.message)
    except OSError as error:
        return refuse("plan", error)


def _devices(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def simulate(devices: int) -> None:
    """Have as many processors simulated, unless JAX has started."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={max(devices, 1)}"
    if "xla_cpu_experimental_ynn" not in flags and version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_experimental_ynn_fusion_type="  # it hides what products need
    os.environ["XLA_FLAGS"] = flags.strip()


def _plan(args: argparse.Namespace) -> TrainingPlan | None:
    """The plan; None where nothing fits, which is told."""
    from functional_bp.gradcheck.targets import inputs_for
    from functional_bp.memory.footprint import FootprintError, parse_bytes
    from functional_bp.shard.layout_search import NothingFitsError
    from functional_bp.shard.planner import plan

    parse_bytes(args.memory)
    for file in args.files:
        if Path(file).suffix not in FORMATS:
            raise FootprintError(
                f"{file} has an ending that says no format", expected=", ".join(FORMATS)
            )
    target = function_at(args.target)
    params, *rest = inputs_for(
        target, file=args.inputs, shapes=args.shapes, what="plan it for", is_shape=True
    )
    loss, batch = (target.subject, rest[0]) if len(rest) == 1 else (_packed(target.subject), rest)
    try:
        return plan(loss, params, batch, optimizer=optimizer_of(args.optimizer),
                    devices=args.devices, memory=args.memory,
                    microbatches=not args.no_microbatches)  # fmt: skip
    except NothingFitsError as error:
        print(error)
        return None


def _packed(loss: Any) -> Any:
    """The loss as one of parameters and a batch that holds all its other arguments."""

    def packed(params: Any, batch: Any) -> Any:
        return loss(params, *batch)

    packed.__name__ = getattr(loss, "__name__", "loss")
    return packed


def _save(plan: TrainingPlan, file: str) -> None:
    report = plan.explain()
    write = {".svg": report.svg, ".html": report.html,
             ".txt": lambda: report.text(100) + "\n"}[Path(file).suffix]  # fmt: skip
    Path(file).write_text(write(), encoding="utf-8")
    print(file)
