"""Each scope of the page is laid out: cards for what stands in it, wires between them.

1. Cards that are fed by the same cards and feed the same cards, as the heads of attention do, are
   twins: five or more of them stand in a frame, and a wire to one is drawn to the frame.
2. What is shared (a weight used in many places) stands at the left, with wires that bend to the
   left sides of what uses it.
3. The rest, each frame as one box, is laid out from top to bottom; from left to right where that
   is seen larger.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from functional_bp.explanation.numbers import format_value
from functional_bp.explanation.pictures.contents import Contents, Node, Returned
from functional_bp.explanation.pictures.layered import Placed, Point, Vertex, Wire, layout
from functional_bp.explanation.pictures.scene import path_data, spans
from functional_bp.explanation.pictures.symbols import Line, TextRun, measure, roman
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.explanation.scopes import End, Scope, Stub, View
from functional_bp.graph.graph import Variable

WINDOW = (830.0, 790.0)  # what a picture usually has
WIDE = 2.0  # width over height, from which on a layout from left to right is tried
FEWEST_TWINS = 5
FRAME_WIDTH = 760.0  # of the cards in a frame, at most
GAP = 14.0  # of cards in a frame
COLUMN, FAN, BETWEEN = 34.0, 9.0, 18.0  # room for wires of what is shared, and between its cards

Frame = list[float]  # left, top, width, height


class Arranged(NamedTuple):
    """The cards have these centres, the wires these routes, the twins these frames."""

    placed: Placed
    frames: list[Frame]


def arranged(
    boxes: Sequence[Vertex], joins: Sequence[tuple[int, int]], shared: Sequence[int]
) -> Arranged:
    """Lay out a view.

    Args:
        boxes: the cards; a card's key is its place in this list.
        joins: for each wire the cards at its ends.
        shared: the cards that stand at the left of the rest.
    """
    groups = _twins(len(boxes), [join for join in joins if join[0] not in shared])
    frame_of: dict[Any, Any] = {i: ("frame", g) for g, group in enumerate(groups) for i in group}
    outer: dict[Any, Vertex] = {}
    for box in boxes:
        i = box.key
        if i in shared:
            continue
        key = frame_of.get(i, i)
        if key not in outer:
            members = groups[key[1]] if isinstance(key, tuple) else []
            outer[key] = _frame(key, [boxes[m] for m in members]) if members else box
    ends = {(frame_of.get(a, a), frame_of.get(b, b)): None for a, b in joins if a not in shared}
    wires = [Wire(pair, *pair) for pair in ends]
    placed = layout(outer.values(), wires, "down")
    if placed.width > WIDE * placed.height and placed.width > WINDOW[0]:
        # many things side by side are larger one above the other
        placed = max(placed, layout(outer.values(), wires, "right"), key=_visible)
    centers = {key: at for key, at in placed.centers.items() if not isinstance(key, tuple)}
    frames: list[Frame] = []
    for g, group in enumerate(groups):
        key = ("frame", g)
        x, y = placed.centers[key]
        left, top = x - outer[key].width / 2, y - outer[key].height / 2
        frames.append([left, top, outer[key].width, outer[key].height])
        centers |= _in_frame([boxes[m] for m in group], left, top)
    routes: dict[Any, list[Point]] = {
        wire: placed.routes[frame_of.get(a, a), frame_of.get(b, b)]
        for wire, (a, b) in enumerate(joins)
        if a not in shared
    }
    rest = Arranged(Placed(centers, routes, {}, placed.width, placed.height), frames)
    return _beside(rest, boxes, joins, shared) if shared else rest


def _twins(count: int, joins: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of cards with the same cards before and the same cards behind."""
    before: dict[int, set[int]] = defaultdict(set)
    after: dict[int, set[int]] = defaultdict(set)
    for a, b in joins:
        after[a].add(b)
        before[b].add(a)
    alike: dict[Any, list[int]] = defaultdict(list)
    for i in range(count):
        if before[i] and after[i]:
            alike[frozenset(before[i]), frozenset(after[i])].append(i)
    return [group for group in alike.values() if len(group) >= FEWEST_TWINS]


def _cells(members: Sequence[Vertex]) -> tuple[int, float, float]:
    """The columns of a frame, and the size of a cell in it."""
    width = max(box.width for box in members) + GAP
    height = max(box.height for box in members) + GAP
    most = max(1, int(FRAME_WIDTH // width))
    rows = math.ceil(len(members) / most)
    return math.ceil(len(members) / rows), width, height


def _frame(key: Any, members: Sequence[Vertex]) -> Vertex:
    columns, width, height = _cells(members)
    rows = math.ceil(len(members) / columns)
    return Vertex(key, columns * width + GAP, rows * height + GAP)


def _in_frame(members: Sequence[Vertex], left: float, top: float) -> dict[Any, Point]:
    columns, width, height = _cells(members)
    left, top = left + GAP / 2, top + GAP / 2
    return {
        box.key: (left + (i % columns + 0.5) * width, top + (i // columns + 0.5) * height)
        for i, box in enumerate(members)
    }


def _beside(
    rest: Arranged,
    boxes: Sequence[Vertex],
    joins: Sequence[tuple[int, int]],
    shared: Sequence[int],
) -> Arranged:
    """What is shared at the left of the rest.

    Wires to all places that use a weight would pull the rest apart.
    """
    left = max(boxes[i].width for i in shared) + COLUMN + FAN * len(shared)
    width, height = rest.placed.width + left, rest.placed.height
    placed = rest.placed.moved(lambda x, y: (x + left, y), width, height)
    centers, routes = placed.centers, placed.routes
    y = 0.0
    for place, i in enumerate(shared):
        box = boxes[i]
        centers[i] = (box.width / 2, y + box.height / 2)
        y += box.height + BETWEEN
        for wire, (a, b) in enumerate(joins):
            if a == i:
                offset = 5.0 * (place - (len(shared) - 1) / 2)
                end = (centers[b][0] - boxes[b].width / 2, centers[b][1] + offset)
                routes[wire] = _bent((box.width, centers[i][1]), end, left - FAN * (place + 1))
    frames = [[x + left, *others] for x, *others in rest.frames]
    return Arranged(placed._replace(height=max(height, y - BETWEEN)), frames)


def _visible(placed: Placed) -> float:
    """The scale at which a layout fits in a window."""
    return min(WINDOW[0] / placed.width, WINDOW[1] / placed.height)


def _bent(start: Point, end: Point, x: float) -> list[Point]:
    """From a right side to a left side, level at both, down along ``x``."""
    (x0, y0), (x1, y1) = start, end
    bend = min(24.0, abs(y1 - y0) / 2)
    down = bend if y1 > y0 else -bend
    x = max(x, x0 + 4)
    turn = min(24.0, max(x - x0, 4.0))
    return [
        (x0, y0), (x - turn, y0), (x - turn, y0), (x - turn, y0),
        (x, y0), (x, y0), (x, y0 + down),
        (x, y0 + down), (x, y1 - down), (x, y1 - down),
        (x, y1), (x, y1), (x + turn, y1),
        (x + turn, y1), (x1, y1), (x1, y1),
    ]  # fmt: skip


SIGN, TEXT, CAPTION = 14.0, 11.0, 10.0  # sizes of letters
ROW, PAD, SIDE = 15.0, 10.0, 9.0
NARROWEST = 36.0  # of a cell with a sign
GRID = 6.0  # widths are multiples of it, so that scopes alike have one layout
MANY_USES = 5  # of an argument that stands at the left, beside the rest
BOLD = 1.1  # how much wider the bold letters of a scope are


class Drawer:
    """A drawer lays out views; scopes with the same boxes and wires are laid out once."""

    def __init__(
        self,
        explanation: EvaluatedGraph,
        shown: Contents,
        number: Mapping[Variable, int],
        scope_number: Mapping[Scope, int],
        counts: Mapping[Scope, int],
    ) -> None:
        self.explanation, self.shown = explanation, shown
        self.number, self.scope_number, self.counts = number, scope_number, counts
        self.known: dict[Any, Arranged] = {}
        self.texts: dict[Variable, tuple[str, str]] = {}

    def draw(self, view: View) -> dict[str, Any]:
        """Return width, height, cards and wires of a view, as JSON has them."""
        leaving: dict[End, dict[Variable, None]] = defaultdict(dict)
        for (tail, _), variables in view.wires.items():
            leaving[tail].update(dict.fromkeys(variables))
        cards = [self._card(end, [*leaving[end]]) for end in view.ends]
        place = {end: i for i, end in enumerate(view.ends)}
        joins = [(place[tail], place[head]) for tail, head in view.wires]
        shared = _shared(view.ends, joins)
        placed, frames = self._arranged(cards, joins, shared)
        for i, card in enumerate(cards):
            x, y = placed.centers[i]
            card["x"], card["y"] = round(x, 1), round(y, 1)
        wires = [
            {"d": path_data(placed.routes[i]), "a": a, "b": b,
             "v": [self.number[v] for v in variables], **({"far": 1} if a in shared else {})}
            for i, ((a, b), variables) in enumerate(zip(joins, view.wires.values()))
        ]  # fmt: skip
        size = {"w": placed.width, "h": placed.height}
        return {**size, "cards": cards, "wires": wires, **({"frames": frames} if frames else {})}

    def _arranged(
        self, cards: list[dict[str, Any]], joins: list[tuple[int, int]], shared: list[int]
    ) -> Arranged:
        key = (tuple((card["w"], card["h"]) for card in cards), tuple(joins), tuple(shared))
        if key not in self.known:
            boxes = [Vertex(i, card["w"], card["h"]) for i, card in enumerate(cards)]
            self.known[key] = arranged(boxes, joins, shared)
        return self.known[key]

    def _card(self, end: End, leaving: list[Variable]) -> dict[str, Any]:
        """What a card says, and its size. Lines: name, value, gradient, caption."""
        match end:
            case Scope():
                return self._scope(end, leaving)
            case Stub():
                name = self.shown.names.get(end.variable, ())
                far = end.elsewhere
                go = self.scope_number[far] if isinstance(far, Scope) else -1
                return self._sized("stub", name, self._lines(end.variable), roman(_where(end)),
                                   v=self.number[end.variable], side=end.side, go=go)  # fmt: skip
            case Returned():
                bar = "" if end.seed is None else format_value(end.seed)
                return self._sized("result", end.label, (self._lines(end.variable)[0], bar), (),
                                   v=self.number[end.variable])  # fmt: skip
            case Node(kind="leaf"):
                assert end.variable is not None
                return self._sized("leaf", end.label, self._lines(end.variable), (),
                                   v=self.number[end.variable])  # fmt: skip
        made, index = self.shown.made.get(end, []), end.equations[0].index
        return self._making("operator", end.label, made, (), v=-1, e=index)

    def _scope(self, scope: Scope, leaving: list[Variable]) -> dict[str, Any]:
        count = self.counts[scope]
        caption = f"{count} equation{'' if count == 1 else 's'}"
        caption = f"{scope.note} · {caption}" if scope.note else caption
        return self._making("scope", roman(scope.name), leaving, roman(caption),
                            s=self.scope_number[scope], v=-1)  # fmt: skip

    def _making(
        self, kind: str, sign: Line, made: list[Variable], caption: Line, **references: Any
    ) -> dict[str, Any]:
        """A card that makes values: the only one, or how many they are."""
        if len(made) == 1:
            references["v"] = self.number[made[0]]
            name = self.shown.names.get(made[0], ())
            return self._sized(kind, sign, self._lines(made[0]), caption, name, **references)
        several = f"{len(made)} values" if made else ""
        return self._sized(kind, sign, (several, ""), caption, **references)

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
        named = (*name, TextRun(" = ")) if name else ()
        above = _up(max(measure((*named, TextRun(value)), TEXT), measure(roman(bar), TEXT)))
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


def _where(stub: Stub) -> str:
    """Where a value comes from or goes to: "from block_1", "argument"."""
    far = stub.elsewhere
    if isinstance(far, Node) and far.kind == "leaf":
        return "argument" if stub.variable.kind == "input" else "constant"
    called = far.name if isinstance(far, Scope) else "".join(run.text for run in far.label)
    return f"{'from' if stub.side == 'in' else 'to'} {called or 'outside'}"


def _shared(ends: list[End], joins: list[tuple[int, int]]) -> list[int]:
    """Arguments, and values from outside, that are used in many places: a column at the left."""
    uses = Counter(tail for tail, _ in joins)
    kinds = (isinstance(e, Stub) or isinstance(e, Node) and e.kind == "leaf" for e in ends)
    return [i for i, is_given in enumerate(kinds) if is_given and uses[i] >= MANY_USES]


def _up(width: float) -> float:
    return -(-width // GRID) * GRID
