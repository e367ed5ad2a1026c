"""The command ``functional-bp footprint`` tells what fills memory, and whether that fits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functional_bp.cli.shared import INPUTS, add_inputs, function_at, optimizer_of, refuse

if TYPE_CHECKING:
    from functional_bp.memory.footprint import Footprint

EPILOG = f"""\
{INPUTS}
For example:
  functional-bp footprint mymodel.py:loss --shape w=f32[512,512] --shape x=f32[4096,512]
  functional-bp footprint mymodel.py:loss --optimizer adam --memory 16GiB --save memory.svg

Exit status: 0 well, 1 with --memory: it does not fit, 2 called wrongly.
"""
FORMATS = (".svg", ".html", ".md", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("target", metavar="MODULE:FUNCTION", help="a loss or another function; FILE.py:FUNCTION")
    add_inputs(
        parser, "or a setting: axis=-1; of --shape no array is made, so that any size will do"
    )
    about = "the position of the argument that is trained (default 0)"
    add("--argnums", type=int, default=0, metavar="N", help=about)
    about = "count a training step with this optimizer of optax, such as adam or sgd"
    add("--optimizer", metavar="NAME", help=about)
    about = "tell how its derivatives grow up to this order: equations, flops, bytes, seconds"
    add("--orders", type=int, metavar="N", help=about)
    add("--memory", metavar="SIZE", help="of a device, such as 16GiB: does it fit?")
    about = "with --memory: the largest size of this dimension that fits, such as x.shape[0]"
    add("--largest", metavar="DIMENSION", help=about)
    add("--growth", action="store_true", help="tell how memory grows with each dimension")
    about = "write it there: .svg, .html, .md or .txt; may be repeated"
    add("--save", action="append", default=[], metavar="FILE", dest="files", help=about)


def run(args: argparse.Namespace) -> int:
    """Tell, print or write it, and return the exit status."""
    from functional_bp.errors import BackpropError
    from functional_bp.memory.footprint import footprint
    from functional_bp.memory.orders import orders

    try:
        fun, inputs = _subject(args)
        optimizer = None if args.optimizer is None else optimizer_of(args.optimizer)
        found = footprint(fun, *inputs, optimizer=optimizer, argnums=args.argnums)
        for file in args.files:
            _save(found, file)
        if not args.files:
            print(found)
        if args.growth:
            print(f"\n{found.growth()}")
        if args.orders is not None:
            print(f"\n{orders(fun, *inputs, up_to=args.orders, argnums=args.argnums)}")
        if args.memory is None:
            return 0
        fits = found.fits(args.memory)
        print(f"\n{'fits' if fits else 'does not fit'} {args.memory}")
        if args.largest is not None:
            print(found.largest(args.memory, args.largest))
        return int(not fits)
    except BackpropError as error:
        return refuse("footprint", error.message)
    except OSError as error:
        return refuse("footprint", error)


def _subject(args: argparse.Namespace) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The function that is asked about, and its arguments or their shapes."""
    from functional_bp.gradcheck.targets import inputs_for
    from functional_bp.memory.footprint import FootprintError, parse_bytes

    if args.memory is not None:
        parse_bytes(args.memory)
    elif args.largest is not None:
        raise FootprintError("--largest asks what fits", got="no memory", do="add --memory 16GiB")
    for file in args.files:
        if Path(file).suffix not in FORMATS:
            raise FootprintError(
                f"{file} has an ending that says no format", expected=", ".join(FORMATS)
            )
    target = function_at(args.target)
    inputs = inputs_for(
        target, file=args.inputs, shapes=args.shapes, what="count it for", is_shape=True
    )
    return target.subject, inputs


def _save(found: Footprint, file: str) -> None:
    write = {".svg": found.svg, ".html": found.html, ".md": found.markdown,
             ".txt": lambda: found.text(100) + "\n"}[Path(file).suffix]  # fmt: skip
    Path(file).write_text(write(), encoding="utf-8")
    print(file)
