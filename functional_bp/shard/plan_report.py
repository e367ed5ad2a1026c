"""A plan is told in words and tables, and its candidates are drawn as memory and communication."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from functional_bp.graph.graph import format_bytes, format_count
from functional_bp.shard.layout_search import Attempt, SearchResult, Smaller, Trial
from functional_bp.tables import html as html_tables
from functional_bp.tables import text as text_tables
from functional_bp.tables.colours import COLOURS
from functional_bp.tables.table import Cell, Column, Line, Table

MOST_UNTRIED = 8  # candidates that were not compiled, in the table


def headline(plan: SearchResult) -> str:
    """Say in a sentence what was chosen."""
    search = plan.search
    devices = f"{search.count} device{'s' * (search.count > 1)}"
    return (
        f"{search.name} on {devices}: {plan.division}. Each needs {format_bytes(plan.peak_bytes)} "
        f"of {format_bytes(plan.memory_bytes)}, where one device alone would need "
        f"{format_bytes(search.alone.peak_bytes)} ({search.platform}, as compiled by XLA, "
        f"optimizer included)"
    )


def sentences(plan: SearchResult) -> Iterator[str]:
    """Say what else is to be known: the law of the batch, operations, time, the search."""
    yield f"Law of the batch: {plan.search.law}"
    done, alone = plan.compiled.flops, plan.search.alone.flops
    if done and alone:
        share = f"{alone / done:.2g} times fewer than one alone" if done < alone else ""
        yield f"Operations of a device and step: {format_count(done)}{', ' * bool(share)}{share}"
        if plan.search.roofline is not None:
            seconds = plan.search.roofline.seconds(done, plan.compiled.communication.bytes)
            yield f"A step takes {seconds:.3g} s at best, by the roofline that was given"
    if plan.division.recomputes:
        choice = next(iter(plan.compiled.step.choices.values()), None)
        yield f"Recomputation: {choice}" if choice else "Parts of the loss are made again"
    count = plan.compilations
    programs = f" in {plan.programs} programs" if plan.programs > count else ""
    yield f"{count} candidate{'s' * (count != 1)} compiled{programs}, {plan.seconds:.0f} s"


def tables(plan: SearchResult) -> tuple[Table, ...]:
    """Make the tables: memory of a device, and what it sends."""
    return (_memory(plan), _collectives(plan)) if plan.search.count > 1 else (_memory(plan),)


def summary(plan: SearchResult, width: int | None = None, color: bool = False) -> str:
    """Write headline, tables and sentences for a terminal."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    told = "\n".join(_filled(text, width) for text in sentences(plan))
    parts = _filled(headline(plan), width), text_tables.text(tables(plan), width, color), told
    return "\n\n".join(parts)


def _filled(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def summary_html(plan: SearchResult) -> str:
    """Write the same as a piece of HTML."""
    told = "".join(f"<p>{escape(text)}</p>" for text in sentences(plan))
    return f"<p>{escape(headline(plan))}</p>{html_tables.html(tables(plan))}{told}"


def _memory(plan: SearchResult) -> Table:
    alone, each = plan.search.alone.program, plan.compiled.program
    columns = (
        Column(""), Column("one device", "right"), Column(f"each of {plan.search.count}", "right"),
        Column("", "right"),
    )  # fmt: skip
    rows = [
        ("arguments: state and batch", alone.argument_bytes, each.argument_bytes),
        ("outputs of their own", alone.output_bytes - alone.donated_bytes,
         each.output_bytes - each.donated_bytes),
        ("temporaries", alone.temporary_bytes, each.temporary_bytes),
    ]  # fmt: skip
    lines = [_row("", *row) for row in rows]
    lines.append(_row("sum", "peak of the step", alone.peak_bytes, each.peak_bytes))
    return Table("Memory", columns, tuple(lines))


def _row(kind: str, title: str, alone: int, each: int) -> Line:
    times = f"÷ {alone / each:.3g}" if each and alone / each > 1.005 else ""
    return Line(kind, (Cell(title), Cell(format_bytes(alone)), Cell(format_bytes(each)),
                       Cell(times, "quiet")))  # fmt: skip


def _collectives(plan: SearchResult) -> Table:
    columns = (
        Column("what devices do together"), Column("times", "right"),
        Column("a device sends", "right"),
    )  # fmt: skip
    communication = plan.compiled.communication
    lines = [Line("", (Cell(kind, is_code=True), Cell(str(count)), Cell(format_bytes(sent))))
             for kind, (count, sent) in communication.by_kind.items()]  # fmt: skip
    lines.append(Line("sum", (Cell("all"), Cell(), Cell(format_bytes(communication.bytes)))))
    least = round(plan.chosen.trial.sent_bytes)
    if least <= communication.bytes:  # else small arrays are not divided as the estimate has it
        told = Cell("this layout needs at least", "quiet"), Cell(), Cell(format_bytes(least))
        lines.append(Line("", told))
    return Table("Communication in a step", columns, tuple(lines))


class PlanReport(NamedTuple):
    """What was tried for a plan, and what smaller minibatches would need on one device."""

    plan: SearchResult
    smaller: tuple[Smaller, ...]

    def __repr__(self) -> str:
        count = len(self.plan.search.trials)
        return f"<PlanReport of {self.plan.search.name}: {count} candidates>"

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables."""
        return (*tables(self.plan), _candidates(self.plan), _minibatches(self.plan, self.smaller))

    def text(self, width: int | None = None, color: bool = False) -> str:
        """Write them for a terminal."""
        width = width or shutil.get_terminal_size((120, 24)).columns
        told = "\n".join(_filled(text, width) for text in sentences(self.plan))
        head = _filled(headline(self.plan), width)
        return f"{head}\n\n{text_tables.text(self.tables, width, color)}\n\n{told}"

    def svg(self) -> str:
        """Draw the candidates, memory to the right, communication upwards."""
        return picture(self.plan, self.smaller)

    def html(self, is_page: bool = True) -> str:
        """Write picture, tables and sentences, as a page of its own or as a piece of one."""
        told = "".join(f"<p>{escape(text)}</p>" for text in sentences(self.plan))
        body = (
            f"<p>{escape(headline(self.plan))}</p>"
            f'<div class="picture">{self.svg()}</div>{html_tables.html(self.tables)}{told}'
        )
        if not is_page:
            return f"<div>{body}</div>"
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Plan of {escape(self.plan.search.name)}</title></head>"
            f"<body>{body}</body></html>\n"
        )

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html(is_page=False)


def _candidates(plan: SearchResult) -> Table:
    columns = (
        Column("candidate"), Column("estimated", "right", drop=2), Column("compiled", "right"),
        Column("sends", "right", drop=1), Column("verdict"),
    )  # fmt: skip
    lines = [_tried(tried, tried is plan.chosen) for tried in plan.tried]
    seen = {tried.trial.division for tried in plan.tried}
    left = [t for t in plan.search.trials if t.division not in seen]
    lines += [_untried(trial, plan.memory_bytes) for trial in left[:MOST_UNTRIED]]
    if len(left) > MOST_UNTRIED:
        rest = Cell(f"{len(left) - MOST_UNTRIED} more", "quiet")
        lines.append(Line("", (rest, *[Cell()] * 4)))
    return Table("Candidates", columns, tuple(lines))


def _tried(tried: Attempt, is_chosen: bool) -> Line:
    trial, done = tried.trial, tried.compiled
    verdict = Cell("chosen", "right") if is_chosen else Cell(tried.why, "wrong")
    size = format_bytes(done.peak_bytes) if done else "–"
    sent = format_bytes(done.communication.bytes) if done else "–"
    estimate = Cell(format_bytes(round(trial.estimated_bytes)))
    return Line("", (Cell(str(trial.division)), estimate, Cell(size), Cell(sent), verdict))


def _untried(trial: Trial, budget: int) -> Line:
    if trial.why:
        why, estimate = trial.why, Cell("–")
    else:
        estimate = Cell(format_bytes(round(trial.estimated_bytes)))
        why = "estimated more costly"
        if trial.argument_bytes > budget:
            why = "state and batch alone too much"
        elif trial.estimated_bytes > budget:
            why = "not likely to fit"
    sent = Cell("–" if trial.why else "~" + format_bytes(round(trial.estimated_sent_bytes)))
    return Line("", (Cell(str(trial.division), "quiet"), estimate, Cell("–"), sent,
                     Cell(why, "quiet")))  # fmt: skip


def _minibatches(plan: SearchResult, smaller: Sequence[Smaller]) -> Table:
    columns = (
        Column("examples"), Column("arguments", "right"), Column("temporaries", "right"),
        Column("peak", "right"), Column("within the budget"),
    )  # fmt: skip

    def line(part: Smaller) -> Line:
        program = part.program
        fits = program.peak_bytes <= plan.memory_bytes
        sizes = (program.argument_bytes, program.temporary_bytes, program.peak_bytes)
        return Line("", (Cell(str(part.examples)), *(Cell(format_bytes(n)) for n in sizes),
                         Cell("yes" if fits else "no", "right" if fits else "wrong")))  # fmt: skip

    title = "The other way: a smaller minibatch on one device (another step of training)"
    return Table(title, columns, tuple(map(line, smaller)))


# The picture.

WIDTH, HEIGHT, LEFT, TOP, FOOT = 640, 340, 70, 24, 44


class _Mark(NamedTuple):
    memory: float
    sent: float
    kind: str  # one of KINDS
    title: str


KINDS = {"chosen": "chosen", "tried": "compiled", "estimated": "estimated",
         "smaller": "a smaller minibatch on one device"}  # fmt: skip


def picture(plan: SearchResult, smaller: Sequence[Smaller] = ()) -> str:
    """Draw candidates as memory against communication, and the budget as a line.

    Of those that were not compiled, the ones that none needs less and sends less than.
    """
    marks = [*_marks(plan), *(
        _Mark(part.program.peak_bytes, 0, "smaller", f"{part.examples} examples on one device: "
              f"{format_bytes(part.program.peak_bytes)}") for part in smaller
    )]  # fmt: skip
    most = max([m.memory for m in marks] + [plan.memory_bytes]) * 1.05
    top = max([m.sent for m in marks] + [1.0]) * 1.05
    x = lambda n: LEFT + (WIDTH - LEFT - 12) * n / most
    y = lambda n: HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * n / top
    parts = [*_axes(most, top, x, y)]
    limit = x(plan.memory_bytes)
    parts.append(f'<path class="limit" d="M{limit:.1f},{TOP}V{HEIGHT - FOOT}"/>'
                 f'<text x="{limit + 4:.1f}" y="{TOP + 10}">budget</text>')  # fmt: skip
    for mark in sorted(marks, key=lambda m: m.kind == "chosen"):
        parts.append(_circle(mark.kind, x(mark.memory), y(mark.sent), mark.title))
    present = [kind for kind in KINDS if any(m.kind == kind for m in marks)]
    for k, kind in enumerate(present):
        at = TOP + 30 + 16 * k
        parts.append(_circle(kind, WIDTH - 210, at, KINDS[kind]))
        parts.append(f'<text x="{WIDTH - 198}" y="{at + 4}">{KINDS[kind]}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bp-plan" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<title>Candidates of {escape(plan.search.name)}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def _circle(kind: str, x: float, y: float, title: str) -> str:
    return (f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if kind == "chosen" else 4}">'
            f"<title>{escape(title)}</title></circle>")  # fmt: skip


def _marks(plan: SearchResult) -> Iterator[_Mark]:
    found = list(_every_mark(plan))
    least = math.inf
    for mark in sorted(found, key=lambda m: (m.memory, m.sent)):
        if mark.kind != "estimated" or mark.sent < least:
            yield mark
        least = min(least, mark.sent)


def _every_mark(plan: SearchResult) -> Iterator[_Mark]:
    done = {tried.trial.division: tried for tried in plan.tried}
    for trial in plan.search.trials:
        if trial.why:
            continue
        tried = done.get(trial.division)
        memory, sent, kind = trial.estimated_bytes, trial.estimated_sent_bytes, "estimated"
        if tried and tried.compiled:
            memory, sent = tried.compiled.peak_bytes, tried.compiled.communication.bytes
            kind = "chosen" if tried is plan.chosen else "tried"
        title = (
            f"{trial.division}: {format_bytes(round(memory))}, sends {format_bytes(round(sent))}"
        )
        yield _Mark(memory, sent, kind, title)


def _axes(most: float, top: float, x: Any, y: Any) -> Iterator[str]:
    foot = HEIGHT - FOOT
    for n in _ticks(most):
        yield f'<path class="grid" d="M{x(n):.1f},{TOP}V{foot}"/>'
        yield f'<text class="middle" x="{x(n):.1f}" y="{foot + 14}">{format_bytes(round(n))}</text>'
    for n in _ticks(top):
        yield f'<path class="grid" d="M{LEFT},{y(n):.1f}H{WIDTH - 12}"/>'
        yield f'<text class="end" x="{LEFT - 5}" y="{y(n) + 4:.1f}">{format_bytes(round(n))}</text>'
    yield (f'<text class="middle" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 10}">memory of a device'
           f'</text><text x="6" y="{TOP - 10}">a device sends</text>')  # fmt: skip


def _ticks(most: float) -> list[float]:
    """Three to five round numbers of bytes up to the largest."""
    step = 2.0 ** math.floor(math.log2(max(most, 4) / 3))
    return [k * step for k in range(int(most / step) + 1)]


_STYLE = f"""
.bp-plan {{ font: 11px system-ui, sans-serif; }} .bp-plan text {{ fill: #1d2125; }}
.bp-plan .middle {{ text-anchor: middle; }} .bp-plan .end {{ text-anchor: end; }}
.bp-plan .grid {{ stroke: #8a9299; stroke-opacity: .3; fill: none; }}
.bp-plan .limit {{ stroke: {COLOURS[5]}; stroke-width: 2; stroke-dasharray: 5 3; fill: none; }}
.bp-plan .estimated {{ fill: none; stroke: #8a9299; }} .bp-plan .tried {{ fill: {COLOURS[1]}; }}
.bp-plan .smaller {{ fill: {COLOURS[0]}; }}
.bp-plan .chosen {{ fill: {COLOURS[2]}; stroke: #fff; }}
@media (prefers-color-scheme: dark) {{ .bp-plan text {{ fill: #e6e4df; }} }}
"""
