"""The command ``functional-bp rules`` lists the rules there are, and shows each one in full."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from functional_bp.cli.shared import refuse

if TYPE_CHECKING:
    from functional_bp.engine.improvements import Improvement
    from functional_bp.engine.rule import Rule

PIPE_WIDTH = 180  # characters per line where the output is not a terminal
WIDEST_COLUMN = 26  # characters; of all columns but the formula
NARROW = 120  # below this the table leaves columns out
FORMULA = 1  # the place of that column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "name",
        nargs="?",
        help="a primitive, shown in full; or a part of names, to list the rules that contain it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the page functional_bp/vjps/README.md, or of it what there is of the name",
    )
    parser.add_argument(
        "--improvements",
        action="store_true",
        help="list the gradients that differ from JAX's on purpose: JAX's value, ours, the true one"
        " (exit status 1 if one of ours is not the true one)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what was asked for, and return the exit status."""
    if args.improvements:
        return list_improvements(args.name or "", args.json)
    from functional_bp import rules

    every = sorted(rules.values(), key=lambda rule: rule.primitive.name)
    matching = [rule for rule in every if (args.name or "") in rule.primitive.name]
    exact = [rule for rule in matching if rule.primitive.name == args.name]
    if args.markdown and matching:
        from functional_bp.cli.gallery import page

        print(page(exact or matching, whole=args.name is None), end="")
        return 0
    if exact and not args.json:
        print("\n\n".join(_in_full(rule) for rule in exact))
        others = [rule.primitive.name for rule in matching if rule not in exact]
        if others:
            print(f"\nSee also: {', '.join(others)}")
        return 0
    if matching:
        return _list(exact or matching, args.json)
    near = difflib.get_close_matches(args.name, {rule.primitive.name for rule in every}, n=5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return refuse("rules", f"no rule's name contains {args.name!r}{hint}")


def _list(rules: Sequence[Rule], as_json: bool) -> int:
    from functional_bp.cli.gallery import describe_rule, keeps

    facts = [describe_rule(rule) for rule in rules]
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    rows = [
        [
            entry["primitive"],
            "; ".join(entry["formulas"].values()) or f"none: {entry['kind']}",
            keeps(entry),
            entry["kinks"],
            "yes" if entry["improvements"] else "",
            entry["references"] or f"{os.path.basename(entry['file'])}:{entry['line']}",
        ]
        for entry in facts
    ]
    headings = ["primitive", "formula", "keeps", "at kinks", "improves", "reference"]
    shown = range(6) if _width() >= NARROW else range(3)
    _print_table([headings[i] for i in shown], [[row[i] for i in shown] for row in rows])
    kinds = Counter(entry["kind"] for entry in facts).most_common()
    total = f"{len(facts)} rule{'' if len(facts) == 1 else 's'}"
    print(f"{total}: {', '.join(f'{count} {kind}' for kind, count in kinds)}")
    return 0


def _in_full(rule: Rule) -> str:
    from functional_bp.cli.gallery import code, describe_rule, keeps

    facts = describe_rule(rule)
    lines = [f"{facts['primitive']}   {facts['signature']}".rstrip(), ""]
    rows = [
        ("kind", facts["kind"]),
        ("keeps", keeps(facts)),
        ("kinks", facts["kinks"] or "–"),
        ("cases", str(facts["cases"])),
        ("source", f"{facts['file']}:{facts['line']}"),
    ]
    lines += [f"  {label:<8}{text}" for label, text in rows]
    sections = {
        "formula": "\n".join(facts["formulas"].values()),
        "derivation": facts["derivation"],
        "better than JAX": "\n".join(facts["improvements"]),
        "code": code(facts),
    }
    for heading, text in sections.items():
        if text:
            lines += ["", f"  {heading}", *(f"    {line}".rstrip() for line in text.splitlines())]
    return "\n".join(lines)


def _width() -> int:
    """Return the terminal's characters per line, or enough for a file or another program."""
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a line for every row, the longest cells cut; the formula takes what is left."""
    from rich.cells import cell_len

    from functional_bp.tables.table import Cell, Column, Line, Table
    from functional_bp.tables.text import text

    columns = list(zip(headings, *rows))
    widths = [min(max(map(cell_len, column)), WIDEST_COLUMN) for column in columns]
    others = sum(w for k, w in enumerate(widths) if k != FORMULA) + 2 * len(widths)
    widths[FORMULA] = max(_width() - others, len(headings[FORMULA]))
    made = tuple(Column(h, width=width, wraps=False) for h, width in zip(headings, widths))
    lines = tuple(Line("rule", tuple(map(Cell, row))) for row in rows)
    print(text((Table("", made, lines),), _width(), color=sys.stdout.isatty()))


# ``functional-bp rules --improvements``: where our gradients are not JAX's, and why.


def list_improvements(part: str, as_json: bool) -> int:
    """Print the improvements with ``part`` in their names; 1 if one has not the true value."""
    import jax

    from functional_bp import vjps as _registered  # noqa: F401  (their import fills the list)
    from functional_bp.engine.improvements import improvements

    chosen = [entry for entry in improvements if part in entry.name]
    if not chosen:
        return refuse("rules", f"no improvement's name contains {part!r}")
    facts = []
    with jax.enable_x64(True):
        for entry in chosen:
            ours, is_true = _our_gradient(entry)
            facts.append(
                {
                    "name": entry.name,
                    "at": ", ".join(map(_value, entry.at)),
                    "dtype": entry.dtype,
                    "jax": entry.jax,
                    "ours": ours,
                    "true": _value(entry.true),
                    "agrees": is_true,
                    "source": entry.source,
                }
            )
    wrong = [entry["name"] for entry in facts if not entry["agrees"]]
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(_improvement_text, facts)))
        print(f"\n{len(facts)} improvements, {len(facts) - len(wrong)} with the true value")
    if wrong:
        print(f"functional-bp rules: not the true value: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _improvement_text(facts: Mapping[str, Any]) -> str:
    """Describe one improvement in a few lines."""
    rows = [
        ("at", f"{facts['at']} ({facts['dtype']})"),
        ("JAX", facts["jax"]),
        ("ours", facts["ours"] + ("" if facts["agrees"] else "   NOT THE TRUE VALUE")),
        ("true", f"{facts['true']}   {facts['source']}"),
    ]
    return "\n".join([facts["name"], *(f"  {label:<6}{text}" for label, text in rows)])


def _our_gradient(entry: Improvement) -> tuple[str, bool]:
    """Compute our gradient as text, and whether it is the true one to the stated tolerance."""
    import jax.numpy as jnp
    import numpy as np

    from functional_bp.engine.transforms import grad

    arrays = [np.asarray(x) for x in entry.at]
    dtypes = {"f": entry.dtype, "c": "complex128" if entry.dtype == "float64" else "complex64"}
    args = [jnp.asarray(x, dtypes.get(x.dtype.kind, x.dtype)) for x in arrays]
    try:
        got = np.asarray(entry.gradient(grad)(*args))
    except Exception as error:  # whatever goes wrong is what the table is there to tell
        return f"raises {type(error).__name__}", False
    got = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    want = np.asarray(entry.true)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    agrees = np.allclose(got, want, rtol=entry.rtol, atol=entry.rtol * scale, equal_nan=True)
    return _value(got), bool(agrees)


def _value(value: Any) -> str:
    """Write a number or a small array on one line, to six digits."""
    import numpy as np

    array = np.asarray(value)
    text = np.array2string(array, precision=6, separator=", ", threshold=6, edgeitems=2)
    return " ".join(text.split()) if array.ndim else f"{array.item():.6g}"
