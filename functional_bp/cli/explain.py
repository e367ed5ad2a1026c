"""The command ``functional-bp explain`` shows a function at a point, as a textbook would."""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from functional_bp.cli.shared import INPUTS, add_inputs, function_at, refuse

if TYPE_CHECKING:
    from functional_bp.errors import BackpropError
    from functional_bp.explanation.explanation import Explanation
    from functional_bp.gradcheck.targets import Target

PLAIN_WIDTH = 120  # characters per line where the output is not a terminal
WRITTEN_OUT = 12  # entries of a cotangent that --cotangents writes out
EPILOG = f"""\
{INPUTS}
For example:
  functional-bp explain mymodel.py:loss --shape x=f32[4,3] --shape y=i32[4]:0..9
  functional-bp explain mymodel:loss --inputs batch.npz --save loss.html --save loss.svg

Exit status: 0 well, 1 with --nonfinite: something is not finite, 2 called wrongly.
"""
# What there is to do about an argument of bp.explain, said of the options.
OPTIONS = {
    "cotangent": "explain a loss, or add --upstream 1.0, the gradient at every entry of the "
    "output; numbers have a point, as in --shape x=-2.0",
    "unroll": "--unroll",
    "max_steps": "--max-steps N",
    "depth": "--depth 0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("target", metavar="MODULE:FUNCTION", help="what to explain; also FILE.py:FUNCTION")
    about = "a number: x=-2.0, or a setting: axis=-1 (what is no array and has no decimal point is "
    add_inputs(parser, about + "not differentiated)")
    add("--seed", type=int, default=0, help="of all random numbers (default 0)")
    about = "the gradient at every entry of an output that is not a scalar"
    add("--upstream", type=float, metavar="NUMBER", help=about)
    about = "write it there: .svg, .png, .pdf, .html, .md, .tex or .txt; may be repeated"
    add("--save", action="append", default=[], metavar="FILE", dest="files", help=about)
    about = "of a picture: values and gradients on the edges (cs231n, the default), or at squares "
    about += "that are variables (d2l)"
    add("--style", choices=("cs231n", "d2l"), help=about)
    about = "of a picture or page: auto is as the viewer's own (default light)"
    add("--theme", choices=("light", "dark", "auto"), help=about)
    about = "in a picture, calls and scopes deeper than that stay closed"
    add("--depth", type=int, metavar="N", help=about)
    add("--unroll", action="store_true", help="write scan loops out, step by step")
    add("--max-steps", type=int, metavar="N", help="the bound of loops that decide when to stop")
    about = "of each table that is printed, the first and last (default 200 in a terminal; 0: all)"
    add("--rows", type=int, metavar="N", help=about)
    about = "print the gradients at these values instead: names of arguments and of bp.name"
    add("--cotangents", metavar="NAME,...", help=about)
    about = "print the first equation that makes a NaN or an infinity instead"
    add("--nonfinite", action="store_true", help=about)


def run(args: argparse.Namespace) -> int:
    """Explain, print or write it, and return the exit status."""
    from functional_bp.errors import BackpropError

    try:
        _check_options(args)
        explanation = _explanation(args)
        for file in args.files:
            _save(explanation, file, args)
        if args.cotangents:
            print("\n".join(_cotangents(explanation, args.cotangents)))
        if args.nonfinite:
            return _print_nonfinite(explanation)
        if not args.files and not args.cotangents:
            _print_tables(explanation, args.rows)
    except BrokenPipeError:  # the reader has seen enough, as in `functional-bp explain … | head`
        raise
    except BackpropError as error:
        return refuse("explain", error.message.reworded(OPTIONS))
    except OSError as error:
        return refuse("explain", error)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from functional_bp.gradcheck.targets import InputsError

    given = list(_drawn_as(args))
    if given and not args.files:
        raise InputsError(
            f"--{given[0]} says how a file is drawn",
            got="no file",
            do="add --save FILE.svg, .png, .pdf or .html",
        )


def _drawn_as(args: argparse.Namespace) -> dict[str, Any]:
    """Return those options of a picture or page that were given."""
    options = {"style": args.style, "theme": args.theme, "depth": args.depth}
    return {name: value for name, value in options.items() if value is not None}


def _explanation(args: argparse.Namespace) -> Explanation:
    import jax
    import jax.numpy as jnp

    from functional_bp import explain, trace
    from functional_bp.gradcheck.targets import inputs_for

    target = function_at(args.target)
    inputs = inputs_for(
        target, file=args.inputs, shapes=args.shapes, seed=args.seed, what="explain it at"
    )
    is_node = [not args.shapes or isinstance(x, jax.Array | float | complex) for x in inputs]
    called = _called(target, inputs, is_node)
    nodes = [x for x, on in zip(inputs, is_node) if on]
    cotangent = None
    if args.upstream is not None:  # JAX's order of leaves, which is that of the graph's outputs
        outputs = trace(called, *nodes).outputs
        cotangent = [jnp.full(v.shape, args.upstream, v.dtype) for v in outputs]
    made = lambda: explain(
        called, *nodes, cotangent=cotangent, unroll=args.unroll, max_steps=args.max_steps
    )
    if args.max_steps is None:
        return made()
    logging.disable(logging.ERROR)  # JAX logs what a callback raises before it raises that
    try:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return made()
        with jax.disable_jit():  # a StepBoundError comes through as it is
            return made()
    finally:
        logging.disable(logging.NOTSET)


def _called(target: Target, inputs: Sequence[Any], is_node: Sequence[bool]) -> Callable[..., Any]:
    """Make a function of those inputs that are values, the others fixed.

    Its own errors say what it was called with.
    """
    from functional_bp.errors import BackpropError

    @functools.wraps(target.subject)
    def called(*nodes: Any) -> Any:
        given = iter(nodes)
        try:
            return target.subject(*(next(given) if on else x for x, on in zip(inputs, is_node)))
        except BackpropError:  # says it all
            raise
        except Exception as error:  # a person's own code may raise anything
            raise _misfit(target, inputs, error) from error

    signature = _signature(target.subject)
    if signature is not None and not all(is_node):  # what is left keeps its names
        fixed = {name for name, on in zip(signature.parameters, is_node) if not on}
        left = [p for name, p in signature.parameters.items() if name not in fixed]
        vars(called)["__signature__"] = signature.replace(parameters=left)
    return called


def _misfit(target: Target, inputs: Sequence[Any], error: Exception) -> BackpropError:
    """Say what a person's own code raised, and what it was called with."""
    import jax

    from functional_bp.errors import describe
    from functional_bp.gradcheck.targets import InputsError

    signature = _signature(target.subject)
    names = list(signature.parameters) if signature is not None else []
    names += [f"argument {i}" for i in range(len(names), len(inputs))]
    described = [str(jax.tree.map(describe, x)).replace("'", "") for x in inputs]
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename == _file_of(target)
    ]
    is_traced = isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError)
    do = "a value decides what the function does: use jnp.where or jax.lax.cond; or fix a setting, "
    do += "as in --shape n=3"
    return InputsError(
        f"{target.name} cannot be traced" if is_traced else f"the inputs do not fit {target.name}",
        where=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "",
        got=f"{', '.join(map(' = '.join, zip(names, described)))}\n            "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        expected=f"{target.short_name}{signature or '(…)'}",
        do=do if is_traced else "",
    )


def _file_of(target: Target) -> str:
    function = inspect.unwrap(target.subject)
    return getattr(getattr(function, "__code__", None), "co_filename", "")


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _save(explanation: Explanation, file: str, args: argparse.Namespace) -> None:
    from functional_bp.errors import BackpropError

    try:
        explanation.save(file, **_drawn_as(args))
    except OSError as error:
        raise BackpropError(
            f"{file} cannot be written",
            got=error.strerror or str(error),
            do="make its folder, or write elsewhere",
        ) from error
    print(file)


def _cotangents(explanation: Explanation, listed: str) -> list[str]:
    """Write the name, type and gradient of each value on a line."""
    from functional_bp.explanation.full_sweeps import lookup
    from functional_bp.explanation.numbers import format_value

    rows: list[tuple[str, str, str]] = []
    for name in _names(listed):
        variable = lookup(explanation.graph, name)
        bar = explanation.bars.get(variable)
        none = "no path with a derivative leads to the output"
        rows.append((name, variable.type, none if bar is None else format_value(bar, WRITTEN_OUT)))
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    return [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {bar}" for name, kind, bar in rows]


def _names(listed: str) -> list[str]:
    """Split at commas, but for those inside brackets: ``h,params['a'],xs[0]``."""
    return [name.strip() for name in re.split(r",(?![^\[]*\])", listed) if name.strip()]


def _print_nonfinite(explanation: Explanation) -> int:
    found = explanation.first_nonfinite()
    print("every value and every gradient is finite" if found is None else found)
    return int(found is not None)


def _print_tables(explanation: Explanation, rows: int | None) -> None:
    from functional_bp.explanation.explanation import MOST_ROWS
    from functional_bp.explanation.tables import tables
    from functional_bp.tables import text

    if rows is None and _is_terminal():
        rows = MOST_ROWS
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    made = tables(explanation, rows or None, explanation.totals)
    print(text.text(made, width, color=_is_terminal() and "NO_COLOR" not in os.environ))
    if any(line.kind == "more" for table in made for line in table.lines):
        print("functional-bp explain: --rows 0 prints all of them", file=sys.stderr)


def _is_terminal() -> bool:
    return sys.stdout.isatty()
