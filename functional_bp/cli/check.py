"""The command ``functional-bp check`` says whether gradients derived by hand are right."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functional_bp.cli.shared import INPUTS, add_inputs, refuse

if TYPE_CHECKING:
    from functional_bp.errors import BackpropError
    from functional_bp.gradcheck.report import Report
    from functional_bp.gradcheck.targets import Target

FORMATS = {"text": "", "json": ".json", "markdown": ".md", "html": ".html"}
PLAIN_WIDTH = 100  # characters per line where the output is not a terminal
EPILOG = f"""\
What is checked:
  MODULE:NAME, FILE.py:NAME   a custom VJP or JVP, an operation, a rule, or NAME_fwd and NAME_bwd
  MODULE, FILE.py             everything of these kinds in it, and what @bp.checked marks
  functional_bp               every rule and operation of this project

{INPUTS}
Exit status: 0 all right, 1 a gradient is wrong (with --strict: or not decided), 2 called wrongly.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("target", metavar="MODULE[:NAME]", help="what to check; also FILE.py or FILE.py:NAME")
    add_inputs(parser, "or a value: axis=-1")
    which = parser.add_mutually_exclusive_group()
    about = "with --of: an argument that the gradient is for (default the first); may be repeated"
    which.add_argument(
        "--arg", action="append", default=[], metavar="NAME", dest="names", help=about
    )
    which.add_argument("--argnums", metavar="0,2", help="the same by position")
    about = "the function that is differentiated instead, where it is not the subject's own"
    add("--reference", metavar="MODULE:NAME", help=about)
    about = "the function whose gradient the subject computes"
    add("--of", metavar="MODULE:NAME", help=about)
    about = "false on purpose: straight-through, a factor such as -1, or MODULE:NAME, its function"
    add("--expect", metavar="DECLARATION", help=about)
    add("--seed", type=int, default=0, help="of all random numbers (default 0)")
    add("--quick", action="store_true", help="fewer inputs and no search")
    add("--seconds", type=float, metavar="S", help="stop a single check after so many seconds")
    add("--format", choices=list(FORMATS), help="of the report (default text)")
    about = "write the report there; .html, .md, .json and .xml say in what format"
    add("--output", metavar="FILE", help=about)
    add("--strict", action="store_true", help="what is not decided counts as a failure")


def run(args: argparse.Namespace) -> int:
    """Check, print or write the report, and return the exit status."""
    from functional_bp.gradcheck.targets import InputsError, TargetError, find

    wrong = _unwritable(args)
    if wrong:
        return refuse("check", wrong)
    reports: list[Report] = []
    try:
        targets = find(args.target)
        if not targets:
            raise TargetError(_nothing_found(args.target))
        options = _options(args, targets)
        _check_all(args, targets, options, reports)
    except KeyboardInterrupt:
        if reports:  # what is done by now
            _show(reports, args.format or _format_of(args.output), args.output)
        raise
    except (TargetError, InputsError) as error:
        return refuse("check", error)
    kind = args.format or _format_of(args.output)
    try:
        _show(reports, kind, args.output)
    except BrokenPipeError:  # the reader has seen enough
        raise
    except OSError as error:
        return refuse("check", error)
    verdicts = {report.verdict for report in reports}
    return int("wrong" in verdicts or (args.strict and "inconclusive" in verdicts))


def _check_all(
    args: argparse.Namespace,
    targets: Sequence[Target],
    options: dict[str, Any],
    reports: list[Report],
) -> None:
    """Append a report of each target; in a whole module, of what could not be checked too."""
    from functional_bp.gradcheck.findings import Verdict
    from functional_bp.gradcheck.report import Report
    from functional_bp.gradcheck.targets import InputsError, TargetError

    alone = len(targets) == 1
    refused: list[InputsError | TargetError] = []
    with _progress(len(targets)) as begin:
        for target in targets:
            begin(target.name)
            try:
                reports.append(_check(args, target, options))
            except (InputsError, TargetError) as error:
                refused.append(error)
                reason = _reason(error, target.name)
                reports.append(Report(target.name, Verdict.INCONCLUSIVE, reasons=(reason,)))
    if refused and (alone or len(refused) == len(targets)):
        raise refused[0]


def _reason(error: BackpropError, name: str) -> str:
    """Say what failed and what was got, on one line."""
    parts = [error.what.removeprefix(f"{name}: "), error.got]
    return ": ".join(part.partition("\n")[0] for part in parts if part)


def _check(args: argparse.Namespace, target: Target, options: dict[str, Any]) -> Report:
    from functional_bp.gradcheck import check
    from functional_bp.gradcheck.targets import TargetError, inputs_for

    if target.error:
        raise TargetError(target.error)
    chosen = {**target.options, **options}
    seed = chosen.setdefault("seed", args.seed)
    inputs = inputs_for(target, file=args.inputs, shapes=args.shapes, seed=seed)
    try:
        report = check.check(target.subject, *inputs, name=target.name, **chosen)
    except Exception as error:  # a person's own code may raise anything
        got = f"{type(error).__name__}: {error}"
        raise TargetError(f"{target.name} cannot be checked", got=got) from error
    again = {**report.settings, "rerun": _command(args, target)}
    return dataclasses.replace(report, name=target.name, settings=again)


def _options(args: argparse.Namespace, targets: Sequence[Target]) -> dict[str, Any]:
    """Read the options of ``functional_bp.check`` off the command line."""
    from functional_bp.gradcheck.targets import InputsError, lookup, positions

    options: dict[str, Any] = {}
    only = [name for name in ("shapes", "inputs", "names", "argnums", "reference", "of", "expect")
            if getattr(args, name)]  # fmt: skip
    if only and len(targets) > 1:
        option = {"shapes": "shape", "names": "arg"}.get(only[0], only[0])
        near = ", ".join(target.name for target in targets[:4])
        raise InputsError(
            f"--{option} is for one gradient",
            got=f"{len(targets)} in {args.target}",
            do=f"name it: {near}{', …' if len(targets) > 4 else ''}",
        )
    if (args.names or args.argnums) and not args.of:
        raise InputsError(
            "--arg and --argnums say which arguments a gradient function is for",
            got="no --of",
            do="add --of MODULE:NAME, the function that is differentiated",
        )
    chosen = positions(targets[0], args.names) if args.names else ()
    if args.argnums:
        try:
            chosen = tuple(map(int, args.argnums.split(",")))
        except ValueError as error:
            raise InputsError(
                "--argnums cannot be read", got=args.argnums, expected="as in 0 or 0,2"
            ) from error
    if chosen:  # as with jax.grad, one number stands for a gradient that is no tuple
        options["argnums"] = chosen[0] if len(chosen) == 1 else chosen
    for name in ("reference", "of"):
        if getattr(args, name):
            options[name] = lookup(getattr(args, name), targets[0].module)
    if args.expect is not None:
        options["expect"] = _expectation(args.expect, targets[0])
    if args.seconds is not None:
        options["seconds"] = args.seconds
    return {**options, **({"quick": True} if args.quick else {})}


def _expectation(text: str, target: Target) -> Any:
    """Read a number, a function's name, or a word that ``functional_bp.check`` knows."""
    from functional_bp.gradcheck.targets import lookup

    try:
        return float(text)
    except ValueError:
        return lookup(text, target.module) if ":" in text else text


def _command(args: argparse.Namespace, target: Target) -> str:
    """Write the command that checks this target alone, in the same way."""
    where, colon, _ = args.target.rpartition(":")
    where = where if colon else args.target
    named = f"{where}:{target.short_name}" if where.endswith(".py") else target.name
    words = ["functional-bp", "check", named]
    for name in args.names:
        words += ["--arg", name]
    for shape in args.shapes:
        words += ["--shape", shape]
    for option in ("argnums", "inputs", "reference", "of", "expect", "seconds"):
        value = getattr(args, option)
        words += [f"--{option}", str(value)] if value is not None else []
    words += ["--seed", str(args.seed)] + (["--quick"] if args.quick else [])
    return shlex.join(words)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on the terminal's stderr; call the result at the beginning of every check."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(bar_width=24), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("{task.description}", markup=False))  # fmt: skip
    shown = console.is_terminal
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task("", total=count)
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=name)
            begun += 1

        yield begin


def _show(reports: Sequence[Report], kind: str, output: str | None) -> None:
    from functional_bp.gradcheck.formats import text, words

    if output is None and kind == "text" and sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(text.render(reports))
        return
    written = _render(reports, kind)
    if output is None:
        print(written, end="")
        return
    Path(output).write_text(written, encoding="utf-8")
    line = words.summary(reports[0]) if len(reports) == 1 else words.totals(reports)
    print(f"{line}\n{output}")


def _render(reports: Sequence[Report], kind: str) -> str:
    from functional_bp.gradcheck.formats import html, json, markdown, text

    if kind == "text":
        return text.plain(reports, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)
    modules = {"json": json, "markdown": markdown, "html": html}
    return modules[kind].render(reports)


def _unwritable(args: argparse.Namespace) -> str:
    """Say why ``--output`` cannot be written, before anything is checked; "" where it can."""
    from functional_bp.errors import compose

    path, endings = Path(args.output or ""), [*filter(None, FORMATS.values()), ".txt"]
    if not path.parent.is_dir():
        return compose(f"{args.output} cannot be written", got=f"no folder {path.parent}",
                       do="make its folder, or write elsewhere")  # fmt: skip
    if args.format is None and path.suffix and path.suffix not in endings:
        return compose(
            f"--output {args.output} says no format",
            got=f"the ending {path.suffix}",
            expected=", ".join(endings),
            do="add --format, or end it otherwise",
        )
    return ""


def _format_of(output: str | None) -> str:
    """Tell the format by the ending of the file's name."""
    ending = Path(output or "").suffix
    return next((kind for kind, known in FORMATS.items() if known and known == ending), "text")


def _nothing_found(target: str) -> str:
    from functional_bp.errors import compose

    return compose(
        f"nothing to check in {target}",
        expected="a custom VJP or JVP, an operation, foo_fwd with foo_bwd, a rule with cases, "
        "or a mark @bp.checked",
        do=f"name a function: functional-bp check {target}:NAME",
    )
