"""The command ``functional-bp rules``: what rules there are, and each one in full."""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.rule import Pullback, Rule
    from functional_bp.rules.improvements import Improvement

PIPE_WIDTH = 180  # characters per line where the output is not a terminal
WIDEST_COLUMN = 28  # characters; of all columns but the last
NARROW = 120  # below this the table leaves columns out
LONGEST_CODE = 60  # lines of a rule's source that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "name",
        nargs="?",
        help="a primitive, shown in full; or a part of names, to list the rules that contain it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--improvements",
        action="store_true",
        help="list the gradients that differ from JAX's on purpose: JAX's value, ours, the true one"
        " (exit status 1 if one of ours is not the true one)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; the exit status."""
    if args.improvements:
        return _improvements(args.name or "", args.json)
    from functional_bp import rules

    every = sorted(rules.values(), key=lambda rule: rule.primitive.name)
    if args.name is None:
        return _list(every, args.json)
    matching = [rule for rule in every if args.name in rule.primitive.name]
    exact = [rule for rule in matching if rule.primitive.name == args.name]
    if exact and args.json:
        return _list(exact, as_json=True)
    if exact:
        print("\n\n".join(_in_full(describe_rule(rule)) for rule in exact))
        others = [rule.primitive.name for rule in matching if rule not in exact]
        if others:
            print(f"\nSee also: {', '.join(others)}")
        return 0
    if matching:
        return _list(matching, args.json)
    near = difflib.get_close_matches(args.name, {rule.primitive.name for rule in every}, n=5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    print(f"functional-bp rules: no rule's name contains {args.name!r}{hint}", file=sys.stderr)
    return 2


def describe_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain data.

    Returns:
        ``primitive``, ``kind``, ``signature``, ``keeps`` (for each operand that has a cotangent,
        the names whose values are kept from the forward sweep; for a joint rule under all of them
        together), ``derivation``, ``kinks``, ``cases`` (how many), ``file`` and ``line``.
    """
    return {
        "primitive": rule.primitive.name,
        "kind": rule.kind,
        "signature": _signature(rule),
        "keeps": {name: list(p.keeps) for name, p in _pullbacks(rule).items()},
        "derivation": rule.derivation,
        "kinks": rule.kinks,
        "cases": len(rule.cases),
        "file": _short_path(rule.file),
        "line": rule.line,
    }


def _pullbacks(rule: Rule) -> Mapping[str, Pullback]:
    if rule.joint is not None:
        return {", ".join(name.text for name in rule.operands): rule.joint}
    return rule.pullbacks


def _signature(rule: Rule) -> str:
    """``x, *ys -> z | r``, or "" for a rule that has none."""
    if not rule.operands and not rule.outputs:
        return ""
    side = lambda names: ", ".join("*" * name.starred + name.text for name in names)  # noqa: E731
    text = f"{side(rule.operands)} -> {side(rule.outputs)}"
    return text + (f" | {', '.join(rule.auxiliaries)}" if rule.auxiliaries else "")


def _short_path(file: str) -> str:
    """Relative to the folder that holds the package, for the files inside it."""
    home = Path(__file__).parents[2]
    return str(Path(file).relative_to(home)) if Path(file).is_relative_to(home) else file


def _keeps(facts: Mapping[str, Any]) -> str:
    """``x_bar: y; y_bar: x``, ``nothing`` for a linear rule, ``–`` where there is no cotangent."""
    if not facts["keeps"]:
        return "as the graph needs" if facts["kind"] == "structural" else "–"
    parts = []
    for operand, kept in facts["keeps"].items():
        bars = ", ".join(name + "_bar" for name in operand.split(", "))
        parts.append(f"{bars}: {', '.join(kept) or 'nothing'}")
    return "; ".join(parts) if any(facts["keeps"].values()) else "nothing"


def _list(rules: Sequence[Rule], as_json: bool) -> int:
    facts = [describe_rule(rule) for rule in rules]
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    rows = [
        [
            entry["primitive"],
            entry["kind"],
            entry["signature"],
            _keeps(entry),
            f"{os.path.basename(entry['file'])}:{entry['line']}",
            entry["derivation"].partition("\n")[0],
        ]
        for entry in facts
    ]
    headings = ["primitive", "kind", "signature", "keeps", "rule", "derivation"]
    shown = range(6) if _width() >= NARROW else (0, 3, 5)
    _print_table([headings[i] for i in shown], [[row[i] for i in shown] for row in rows])
    kinds = Counter(entry["kind"] for entry in facts).most_common()
    total = f"{len(facts)} rule{'' if len(facts) == 1 else 's'}"
    print(f"{total}: {', '.join(f'{count} {kind}' for kind, count in kinds)}")
    return 0


def _in_full(facts: Mapping[str, Any]) -> str:
    lines = [f"{facts['primitive']}   {facts['signature']}".rstrip(), ""]
    rows = [
        ("kind", facts["kind"]),
        ("keeps", _keeps(facts)),
        ("kinks", facts["kinks"] or "–"),
        ("cases", str(facts["cases"])),
        ("source", f"{facts['file']}:{facts['line']}"),
    ]
    lines += [f"  {label:<8}{text}" for label, text in rows]
    for heading, text in (("derivation", facts["derivation"]), ("code", _code(facts))):
        if text:
            lines += ["", f"  {heading}", *(f"    {line}".rstrip() for line in text.splitlines())]
    return "\n".join(lines)


def _code(facts: Mapping[str, Any]) -> str:
    """The statement that declares the rule, "" if its file cannot be read."""
    file = Path(facts["file"])
    file = file if file.is_absolute() else Path(__file__).parents[2] / file
    try:
        text = file.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (OSError, SyntaxError):
        return ""
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        if first <= facts["line"] <= (node.end_lineno or first):
            code = text.splitlines()[first - 1 : node.end_lineno]
            rest = len(code) - LONGEST_CODE
            return "\n".join(code[:LONGEST_CODE] + ([f"… {rest} more lines"] if rest > 0 else []))
    return ""


def _improvements(part: str, as_json: bool) -> int:
    import jax

    from functional_bp import rules as _registered  # noqa: F401  (their import fills the list)
    from functional_bp.rules.improvements import improvements

    chosen = [entry for entry in improvements if part in entry.name]
    if not chosen:
        print(f"functional-bp rules: no improvement's name contains {part!r}", file=sys.stderr)
        return 2
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
    """One improvement in a few lines."""
    rows = [
        ("at", f"{facts['at']} ({facts['dtype']})"),
        ("JAX", facts["jax"]),
        ("ours", facts["ours"] + ("" if facts["agrees"] else "   NOT THE TRUE VALUE")),
        ("true", f"{facts['true']}   {facts['source']}"),
    ]
    return "\n".join([facts["name"], *(f"  {label:<6}{text}" for label, text in rows)])


def _our_gradient(entry: Improvement) -> tuple[str, bool]:
    """Our gradient as text, and whether it is the true one, to the stated tolerance."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from functional_bp.transforms import grad

    def real_sum(*args: Any) -> Any:
        leaves = [y for y in jax.tree.leaves(entry.function(*args)) if y.dtype.kind in "fcV"]
        return sum(jnp.sum(jnp.real(y)) for y in leaves)

    arrays = [np.asarray(x) for x in entry.at]
    dtypes = {"f": entry.dtype, "c": "complex128" if entry.dtype == "float64" else "complex64"}
    args = [jnp.asarray(x, dtypes.get(x.dtype.kind, x.dtype)) for x in arrays]
    try:
        got = np.asarray(grad(real_sum, entry.wrt)(*args))
    except Exception as error:  # whatever goes wrong is what the table is there to tell
        return f"raises {type(error).__name__}", False
    got = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    want = np.asarray(entry.true)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    agrees = np.allclose(got, want, rtol=entry.rtol, atol=entry.rtol * scale, equal_nan=True)
    return _value(got), bool(agrees)


def _value(value: Any) -> str:
    """A number or a small array on one line, to six digits."""
    import numpy as np

    array = np.asarray(value)
    text = np.array2string(array, precision=6, separator=", ", threshold=6, edgeitems=2)
    return " ".join(text.split()) if array.ndim else f"{array.item():.6g}"


def _width() -> int:
    """Characters per line: of the terminal, or enough for a file or another program."""
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of one line per row, the longest cells cut; the last column takes what is left."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = list(zip(headings, *rows))
    widths = [min(max(map(cell_len, column)), WIDEST_COLUMN) for column in columns[:-1]]
    widths.append(max(_width() - sum(widths) - 3 * len(widths), len(headings[-1])))
    for heading, width in zip(headings, widths):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=_width(), highlight=False).print(table)
