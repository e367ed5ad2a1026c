"""A footprint is told as tables, and drawn as memory over the course of the program."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

from functional_bp.graph.graph import format_bytes, short_place
from functional_bp.memory.attribution import TEMPORARY, Purpose, Share, Usage, origin_of
from functional_bp.memory.kept import KeptValue, kept_table
from functional_bp.tables import html as html_tables
from functional_bp.tables import markdown as markdown_tables
from functional_bp.tables import text as text_tables
from functional_bp.tables.colours import COLOURS
from functional_bp.tables.table import Cell, Column, Line, Table, between, drops, ending, natural

MOST_SHARES = 16  # lines of the second table
WEIGHTS = (Purpose.PARAMETERS, Purpose.OPTIMIZER, Purpose.STATE)  # alike in every layer
SMALLEST = 0.004  # of the peak: what is less goes into one line


class FootprintReport(NamedTuple):
    """What is told: the function's name, where it was compiled, and each program's usage."""

    name: str
    devices: int
    usages: Mapping[str, Usage]
    kept: tuple[KeptValue, ...] = ()


def tables(report: FootprintReport) -> tuple[Table, ...]:
    """Make the tables: what the bytes are for, what fills the peak, and why it is kept."""
    why = (kept_table(report.kept),) if report.kept else ()
    return (_summary(report), *_filling(report), *why)


def text(report: FootprintReport, width: int | None = None, color: bool = False) -> str:
    """Write the tables for a terminal, with a headline above them."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    head = textwrap.fill(headline(report), width)
    return f"{head}\n\n{text_tables.text(tables(report), width, color)}"


def markdown(report: FootprintReport) -> str:
    """Write the tables in Markdown."""
    return f"{headline(report)}\n\n{markdown_tables.markdown(tables(report))}"


def html(report: FootprintReport, is_page: bool = True) -> str:
    """Write picture and tables, as a page of its own or as a piece of one."""
    head = f"<p>{escape(headline(report))}</p>"
    body = f'{head}<div class="picture">{timeline(report)}</div>{html_tables.html(tables(report))}'
    if not is_page:
        return f"<div>{body}</div>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Memory of {escape(report.name)}</title><style>{_PAGE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


_PAGE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  background: #fff; color: #1d2125; }
@media (prefers-color-scheme: dark) { body { background: #15181b; color: #e6e4df; } }
.picture svg { max-width: 100%; height: auto; } .sweeps { overflow-x: auto; }
"""


def headline(report: FootprintReport) -> str:
    """Say in a sentence what is needed."""
    needs = " and ".join(
        f"{format_bytes(usage.peak_bytes)} for {name}" for name, usage in report.usages.items()
    )
    programs = [usage.program for usage in report.usages.values()]
    where = programs[0].platform
    if report.devices > 1:
        where = f"each of {report.devices} devices, {where}"
    is_told = any(program.allocations for program in programs)
    sums = "" if is_told else ", whose compiler tells sums alone"
    return f"{report.name} needs {needs} ({where}, as compiled by XLA{sums})"


def _summary(report: FootprintReport) -> Table:
    usages = list(report.usages.values())
    columns = (
        Column(""), *(Column(name, "right", drop=0, width=0) for name in report.usages),
    )  # fmt: skip

    def line(kind: str, title: str, amounts: list[int], state: str = "") -> Line:
        cells = [Cell(format_bytes(n) if n else "–", "quiet" if not n else "") for n in amounts]
        return Line(kind, (Cell(title), *cells))

    lines: list[Line] = []
    if not any(usage.shares for usage in usages):
        lines = [
            line("", "arguments", [u.program.argument_bytes for u in usages]),
            line("", "outputs", [u.program.output_bytes for u in usages]),
            line("", "temporaries", [u.program.temporary_bytes for u in usages]),
        ]
    for use in Purpose if not lines else ():
        amounts = [usage.by_use[use] for usage in usages]
        if use is TEMPORARY[0]:
            lines.append(line("", "temporaries", [_temporaries(u) for u in usages]))
        if any(amounts):
            indent = "  " if use in TEMPORARY else ""
            lines.append(line("", indent + use.value, amounts))
    lines.append(line("sum", "peak of the program", [u.peak_bytes for u in usages]))
    return Table("What fills memory", columns, tuple(lines))


def _temporaries(usage: Usage) -> int:
    return sum(usage.by_use[use] for use in TEMPORARY)


def _filling(report: FootprintReport) -> Iterator[Table]:
    for name, usage in list(report.usages.items())[:1]:
        if not usage.shares:
            continue
        groups = _grouped(usage.shares)
        shown = [g for g in groups if g[0].bytes >= SMALLEST * usage.peak_bytes][:MOST_SHARES]
        lines = [_share(share, scopes, usage.peak_bytes) for share, scopes in shown]
        rest = [share for share, _ in groups[len(shown) :]]
        if rest:
            total = sum(share.bytes for share in rest)
            count = Cell(f"{len(rest)} more")
            cells = [Cell(format_bytes(total)), Cell(_percent(total, usage.peak_bytes)), count]
            lines.append(Line("", (*cells, *[Cell()] * 4)))
        scope, source = drops(lines, 5, 6)
        columns = (
            Column("bytes", "right"), Column("share", "right", drop=2), Column("what"),
            Column("type", drop=4), Column("made by"), Column("scope", drop=scope),
            Column("source", drop=source),
        )  # fmt: skip
        yield Table(f"At the peak of {name}{_at(usage)}", columns, tuple(lines))


def _grouped(shares: Iterable[Share]) -> list[tuple[Share, list[str]]]:
    """Join what differs in its scope alone, the same line in each layer; and their weights."""
    groups: dict[object, list[Share]] = {}
    for share in shares:
        origin = share.origin
        name = "" if share.use in WEIGHTS or share.is_copy else share.name
        made = name if origin is None else (name, origin.operation, origin.source)
        groups.setdefault((share.use, share.type, made), []).append(share)
    joined = []
    for one, *others in groups.values():
        scopes = sorted({s.origin.scope for s in (one, *others) if s.origin}, key=natural)
        size, count = (sum(getattr(s, f) for s in (one, *others)) for f in ("bytes", "count"))
        name = "" if {s.name for s in others} - {one.name} else one.name
        joined.append((replace(one, name=name, bytes=size, count=count), scopes))
    return sorted(joined, key=lambda item: -item[0].bytes)


def _at(usage: Usage) -> str:
    """Say where in the program's course the peak is."""
    origin = usage.peak_origin
    if origin is None:
        return ""
    part = "reverse sweep" if origin.is_reverse else "forward sweep"
    part = "update" if origin.is_update else part
    where = "/".join(filter(None, (origin.scope, origin.operation)))
    return f", in the {part} at {where} {short_place(origin.source)}".rstrip()


_SHORT = {
    Purpose.KEPT: "kept", Purpose.FORWARD: "forward sweep", Purpose.REVERSE: "reverse sweep",
}  # fmt: skip


def _share(share: Share, scopes: list[str], total: int) -> Line:
    origin = share.origin
    many = f"{share.count} × " if share.count > 1 else ""
    use = _SHORT.get(share.use, share.use.value)
    what = f"{share.name} ({use})" if share.name else use
    return Line(
        "",
        (
            Cell(format_bytes(share.bytes)),
            Cell(_percent(share.bytes, total)),
            Cell(what, short=_end_of(share.name) or use.removesuffix(" sweep")),
            Cell(many + share.type, is_code=True),
            Cell(origin.operation if origin else ""),
            Cell(between(scopes), short=ending(between(scopes), 24)),
            Cell(short_place(origin.source) if origin else ""),
        ),
    )


def _end_of(argument: str) -> str:
    """Write the end of an argument's path: ``Dense_0.kernel``."""
    return ending(".".join(re.findall(r"[^\[\]'.]+", argument)), 16)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"


WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 760, 300, 70, 34, 40, 190
MOST_STEPS = 240  # of the horizontal axis; of longer programs the fullest moment of each stretch
MOST_AREAS = 7
Scale = Callable[[float], float]


def timeline(report: FootprintReport) -> str:
    """Draw the bytes of the first program over its course, as an SVG."""
    name, usage = next(iter(report.usages.items()))
    program = usage.program
    if not program.instructions:
        return _picture([f'<text x="{LEFT}" y="{TOP + 20}">this platform does not tell the course '
                         "of a program</text>"], f"Memory of {report.name}")  # fmt: skip
    steps = _moments(usage)
    held = program.peak_bytes - program.temporary_bytes
    areas = _areas(usage, steps)
    top = max(program.peak_bytes, 1)
    right = WIDTH - LEGEND
    x = lambda k: LEFT + (right - LEFT) * k / len(steps)
    y = lambda amount: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * amount / top
    parts: list[str] = []
    base = [float(held)] * len(steps)
    parts.append(_area(x, y, [0.0] * len(steps), base, "held", "arguments and outputs"))
    labels: list[tuple[str, str, float]] = [("held", "arguments, outputs", held)]
    for k, (scope, amounts) in enumerate(areas):
        above = [b + a for b, a in zip(base, amounts)]
        parts.append(_area(x, y, base, above, f"c{k}", scope))
        labels.append((f"c{k}", scope, max(amounts)))
        base = above
    parts += _axes(x, y, usage, steps, top, right)
    parts += _legend(labels, right)
    title = f"{report.name}: memory over the course of {name}, {format_bytes(program.peak_bytes)}"
    return _picture(
        [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>', *parts], title
    )


def _moments(usage: Usage) -> list[int]:
    """Choose the positions that are drawn; of a long program the fullest of each stretch."""
    live = usage.program.live_bytes
    count = min(len(live), MOST_STEPS)
    bounds = [round(k * len(live) / count) for k in range(count + 1)]
    return [max(range(a, b), key=live.__getitem__) for a, b in zip(bounds, bounds[1:])]


def _areas(usage: Usage, steps: list[int]) -> list[tuple[str, list[float]]]:
    """Sum what is live at each step by scope: the largest scopes, and the rest as one.

    Scopes are told apart as deep as leaves no more of them than colours.
    """
    sums: dict[str, list[float]] = {}
    for buffer in usage.program.temporaries:
        amounts = sums.setdefault(origin_of(buffer.origin).scope, [0.0] * len(steps))
        for k, position in enumerate(steps):
            if buffer.is_live(position):
                amounts[k] += buffer.bytes
    told = max(usage.program.temporary_bytes, 1) / 200  # less cannot be seen
    ranked: list[tuple[str, list[float]]] = []
    for depth in (3, 2, 1):
        joined = sorted(_joined(sums, depth).items(), key=lambda item: -max(item[1]))
        ranked = [item for item in joined if max(item[1]) >= told]
        if len(ranked) <= MOST_AREAS:
            break
    if len(ranked) > MOST_AREAS:
        few = (amounts for _, amounts in ranked[MOST_AREAS - 1 :])
        rest = [sum(column, 0.0) for column in zip(*few)]
        ranked = [*ranked[: MOST_AREAS - 1], ("other", rest)]
    first = lambda item: next(k for k, amount in enumerate(item[1]) if amount)
    return sorted(ranked, key=lambda item: (item[0] == "other", first(item)))


def _joined(sums: Mapping[str, list[float]], depth: int) -> dict[str, list[float]]:
    """Add up the amounts of scopes that begin alike."""
    joined: dict[str, list[float]] = {}
    for scope, amounts in sums.items():
        name = "/".join(scope.split("/")[:depth]) or "outside any scope"
        joined[name] = [a + b for a, b in zip(joined.get(name, [0.0] * len(amounts)), amounts)]
    return joined


def _area(
    x: Scale, y: Scale, below: Sequence[float], above: Sequence[float], role: str, title: str
) -> str:
    count = len(above)
    over = _stairs(x, y, above, range(count), 0)
    under = _stairs(x, y, below, range(count - 1, -1, -1), 1)
    start = f"M{x(0):.1f},{y(below[0]):.1f}"
    return f'<path class="{role}" d="{start}{over}{under}Z"><title>{escape(title)}</title></path>'


def _stairs(
    x: Scale, y: Scale, amounts: Sequence[float], steps: Iterable[int], entered_from: int
) -> str:
    """Walk along the amounts: across each step, and up or down where they change."""
    parts, last = [], None
    for k in steps:
        here = f"{y(amounts[k]):.1f}"
        if here != last:
            parts.append(f"H{x(k + entered_from):.1f}V{here}")
        last = here
    return "".join(parts) + f"H{x(len(amounts) if entered_from == 0 else 0):.1f}"


def _axes(x: Scale, y: Scale, usage: Usage, steps: list[int], top: int, right: float) -> list[str]:
    program = usage.program
    parts = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        here = y(top * part)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{here:.1f}" y2="{here:.1f}"/>'
        )
        label = format_bytes(round(top * part)) if part else "0"
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{here + 4:.1f}">{label}</text>')
    turn = _turn(usage)
    where = next((k for k, position in enumerate(steps) if position >= turn), len(steps))
    foot = HEIGHT - BOTTOM
    if 0 < where < len(steps):
        parts.append(f'<line class="turn" x1="{x(where):.1f}" x2="{x(where):.1f}" y1="{TOP}" '
                     f'y2="{foot}"/>')  # fmt: skip
        parts.append(f'<text class="side" x="{x(where) - 6:.1f}" y="{foot + 18}" '
                     'text-anchor="end">forward sweep</text>')  # fmt: skip
        parts.append(f'<text class="side" x="{x(where) + 6:.1f}" y="{foot + 18}">reverse sweep'
                     "</text>")  # fmt: skip
    else:
        parts.append(f'<text class="side" x="{LEFT}" y="{foot + 18}">course of the program</text>')
    peak = max(range(len(steps)), key=lambda k: (program.live_bytes[steps[k]], k))
    full = program.peak_bytes
    parts.append(f'<circle class="peak" cx="{x(peak + 0.5):.1f}" cy="{y(full):.1f}" r="4"/>')
    return parts


def _turn(usage: Usage) -> int:
    """Return the position that best divides the program into forward and reverse sweep.

    A few instructions of the one are scheduled among those of the other (zeros, made early).
    """
    origins = [origin_of(i) if i.path else None for i in usage.program.instructions]
    sides = [o and (o.is_reverse or o.is_update) for o in origins]
    right = best = sum(side is True for side in sides)  # well placed with the border at the start
    turn = 0
    for position, side in enumerate(sides, 1):
        right += (side is False) - (side is True)
        if right > best:
            turn, best = position, right
    return turn if any(sides) else len(sides)


def _legend(labels: list[tuple[str, str, float]], right: float) -> list[str]:
    parts = []
    for k, (role, scope, most) in enumerate(reversed(labels)):
        y = TOP + 4 + 27 * k
        parts.append(f'<rect class="{role}" x="{right + 14}" y="{y}" width="12" height="12"/>')
        parts.append(f'<text x="{right + 32}" y="{y + 10}">{escape(ending(scope))}</text>')
        parts.append(f'<text class="amount" x="{right + 32}" y="{y + 23}">'
                     f"up to {format_bytes(round(most))}</text>")  # fmt: skip
    return parts


def _picture(parts: list[str], title: str) -> str:
    fills = "".join(f".bp-memory .c{k} {{ fill: {c}; }}" for k, c in enumerate(COLOURS))
    style = f"""
.bp-memory {{ font: 12px system-ui, sans-serif; fill: #1d2125; }}
.bp-memory text {{ fill: #1d2125; }} .bp-memory .tick {{ text-anchor: end; font-size: 11px; }}
.bp-memory .title {{ font-weight: bold; font-size: 13px; }}
.bp-memory .amount {{ font-size: 10.5px; }}
.bp-memory .grid {{ stroke: #8a9299; stroke-opacity: .35; }} .bp-memory .held {{ fill: #8a9299; }}
.bp-memory .turn {{ stroke: #1d2125; stroke-dasharray: 4 3; }}
.bp-memory .peak {{ fill: #d1242f; stroke: #fff; }} {fills}
@media (prefers-color-scheme: dark) {{
.bp-memory text {{ fill: #e6e4df; }} .bp-memory .turn {{ stroke: #e6e4df; }} }}
"""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bp-memory" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<title>{escape(title)}</title><style>{style}</style>{''.join(parts)}</svg>"
    )
