"""Each scope of the page laid out: cards for what stands in it, wires between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.numbers import format_value
from functional_bp.explain.page.arranging import Arranged, arranged
from functional_bp.explain.pictures.boxes import Box
from functional_bp.explain.pictures.contents import Contents, Node, Output
from functional_bp.explain.pictures.svg import path_data, spans
from functional_bp.explain.pictures.typeset import Line, Run, measure, roman
from functional_bp.explain.scopes import End, Scope, Stub, View
from functional_bp.graph.parts import Variable

SIGN, TEXT, CAPTION = 14.0, 11.0, 10.0  # sizes of letters
ROW, PAD, SIDE = 15.0, 10.0, 9.0
NARROWEST = 36.0  # of a cell with a sign
GRID = 6.0  # widths are multiples of it, so that scopes alike have one layout
MANY_USES = 5  # of an argument that stands at the left, beside the rest
BOLD = 1.1  # how much wider the bold letters of a scope are


class Drawer:
    """Lays out views; scopes with the same boxes and wires are laid out once."""

    def __init__(
        self,
        explanation: Explanation,
        shown: Contents,
        number: Mapping[Variable, int],
        scope_number: Mapping[Scope, int],
        counts: Mapping[Scope, int],
    ) -> None:
        self.explanation, self.shown = explanation, shown
        self.number, self.scope_number, self.counts = number, scope_number, counts
        self.known: dict[Any, Arranged] = {}
        self.made: dict[Node, list[Variable]] = {}
        for variable, node in shown.maker.items():
            self.made.setdefault(node, []).append(variable)
        self.texts: dict[Variable, tuple[str, str]] = {}

    def draw(self, view: View) -> dict[str, Any]:
        """Width, height, cards and wires of a view, as JSON has them."""
        leaving: dict[End, list[Variable]] = {}
        for (tail, _), variables in view.wires.items():
            mine = leaving.setdefault(tail, [])
            mine += [v for v in variables if v not in mine]
        cards = [self._card(end, leaving.get(end, [])) for end in view.ends]
        place = {end: i for i, end in enumerate(view.ends)}
        joins = [(place[tail], place[head]) for tail, head in view.wires]
        shared = _shared(view.ends, joins)
        placed, frames = self._arranged(cards, joins, shared)
        for i, card in enumerate(cards):
            x, y = placed.centers[i]
            card["x"], card["y"] = round(x, 1), round(y, 1)
        wires = [
            {"d": path_data(placed.routes[i]), "a": a, "b": b,
             "v": [self.number[v] for v in variables]}
            for i, ((a, b), variables) in enumerate(zip(joins, view.wires.values()))
        ]  # fmt: skip
        for wire in wires:
            if wire["a"] in shared:
                wire["far"] = 1
        size = {"w": placed.width, "h": placed.height}
        return {**size, "cards": cards, "wires": wires, **({"frames": frames} if frames else {})}

    def _arranged(
        self, cards: list[dict[str, Any]], joins: list[tuple[int, int]], shared: list[int]
    ) -> Arranged:
        key = (tuple((card["w"], card["h"]) for card in cards), tuple(joins), tuple(shared))
        if key not in self.known:
            boxes = [Box(i, card["w"], card["h"]) for i, card in enumerate(cards)]
            self.known[key] = arranged(boxes, joins, shared)
        return self.known[key]

    def _card(self, end: End, leaving: list[Variable]) -> dict[str, Any]:
        """What a card says, and its size. Lines: name, value, gradient, caption."""
        match end:
            case Scope():
                return self._scope(end, leaving)
            case Stub():
                name = self.shown.names.get(end.variable, ())
                caption = self._where(end)
                return self._sized("stub", name, self._lines(end.variable),
                                   roman(caption), v=self.number[end.variable], side=end.side,
                                   go=self._target(end.elsewhere))  # fmt: skip
            case Output():
                value, bar = self._lines(end.variable)[0], format_value(end.seed)
                bar = "" if end.seed is None else bar
                return self._sized("result", end.label, (value, bar), (),
                                   v=self.number[end.variable])  # fmt: skip
            case Node(kind="leaf"):
                assert end.variable is not None
                return self._sized("leaf", end.label, self._lines(end.variable), (),
                                   v=self.number[end.variable])  # fmt: skip
        variables = self.made.get(end, [])
        equation = end.equations[0]
        if len(variables) == 1:
            (variable,) = variables
            name = self.shown.names.get(variable, ())
            return self._sized("operator", end.label, self._lines(variable), (), name,
                               v=self.number[variable], e=equation.index)  # fmt: skip
        text = (f"{len(variables)} values", "") if variables else ("", "")
        return self._sized("operator", end.label, text, (), v=-1, e=equation.index)

    def _scope(self, scope: Scope, leaving: list[Variable]) -> dict[str, Any]:
        count = self.counts[scope]
        caption = f"{count} equation{'' if count == 1 else 's'}"
        caption = f"{scope.note} · {caption}" if scope.note else caption
        single = leaving[0] if len(leaving) == 1 else None
        several = f"{len(leaving)} values" if len(leaving) > 1 else ""
        lines = self._lines(single) if single else (several, "")
        name = self.shown.names.get(single, ()) if single else ()
        return self._sized("scope", roman(scope.name), lines, roman(caption), name,
                           s=self.scope_number[scope],
                           v=self.number[single] if single else -1)  # fmt: skip

    def _sized(
        self,
        kind: str,
        sign: Line,
        lines: tuple[str, str],
        caption: Line,
        name: Line = (),
        **references: Any,
    ) -> dict[str, Any]:
        value, bar = lines
        named = (*name, Run(" = ")) if name else ()
        above = _up(max(measure((*named, Run(value)), TEXT), measure(roman(bar), TEXT)))
        head = measure(sign, SIGN)
        beneath = measure(caption, CAPTION)
        rows = bool(value) + bool(bar)
        if kind == "scope":
            cell = _up(max(head * BOLD + 16, beneath) + 2 * PAD)
        else:
            cell = _up(max(NARROWEST, head + 2 * SIDE)) if sign else 0.0
        width = max(cell + (above + 2 * SIDE if rows else 0), NARROWEST)
        height = max(34.0, ROW * rows + 8) + (8 if kind == "scope" else 0)
        if kind == "stub":
            width = max(width, _up(beneath + 2 * SIDE))
            height += 14
        references["cell"] = round(cell, 1)
        card = {"k": kind, "w": round(width, 1), "h": round(height, 1), **references}
        texts = (("sign", sign, SIGN), ("cap", caption, CAPTION), ("name", named, TEXT))
        for key, line, size in texts:
            if line:
                card[key] = spans(line, size)
        if kind == "result" or (kind in ("operator", "scope") and references.get("v", -1) < 0):
            card["t"] = list(lines)
        return card

    def _lines(self, variable: Variable) -> tuple[str, str]:
        """Value and gradient."""
        if variable not in self.texts:
            held = self.explanation.values.get(variable)
            bar = self.explanation.bars.get(variable)
            self.texts[variable] = ("" if held is None else format_value(held),
                                    "" if bar is None else format_value(bar))  # fmt: skip
        return self.texts[variable]

    def _where(self, stub: Stub) -> str:
        """Where a value comes from or goes to: "from block_1", "argument"."""
        if isinstance(stub.elsewhere, Node) and stub.elsewhere.kind == "leaf":
            return "argument" if stub.variable.kind == "input" else "constant"
        return f"{'from' if stub.side == 'in' else 'to'} {self._called(stub.elsewhere)}"

    def _called(self, end: Scope | Node | Output) -> str:
        plain: Callable[[Line], str] = lambda line: "".join(run.text for run in line)  # noqa: E731
        if isinstance(end, Scope):
            return end.name
        return plain(end.label) or "outside"

    def _target(self, end: Scope | Node | Output) -> int:
        return self.scope_number[end] if isinstance(end, Scope) else -1


def _shared(ends: list[End], joins: list[tuple[int, int]]) -> list[int]:
    """Arguments, and values from outside, that are used in many places: a column at the left."""
    uses = Counter(tail for tail, _ in joins)
    kinds = (isinstance(e, Stub) or isinstance(e, Node) and e.kind == "leaf" for e in ends)
    return [i for i, is_given in enumerate(kinds) if is_given and uses[i] >= MANY_USES]


def _up(width: float) -> float:
    return -(-width // GRID) * GRID
