"""Wires are coloured by the dimensions of what they carry: the outermost stripe is the first axis.

One sees how far the batch reaches, and which operation ends a dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from functional_bp.explanation.pictures.contents import Bundle
from functional_bp.explanation.pictures.layered import Point
from functional_bp.explanation.pictures.scene import Curve, Scene, Shape, Text, shortened
from functional_bp.explanation.pictures.symbols import measure, roman
from functional_bp.graph.graph import Variable
from functional_bp.layouts.dimensions import Dimension, Dimensions
from functional_bp.tables.colours import COLOURS

CORE, STRIPE = 2.2, 2.6  # points: of the wire in the middle, of a stripe at each of its sides
SWATCH, LEGEND_SIZE, LEGEND_GAP = 11.0, 11.5, 18.0


class DimensionColours:
    """The dimensions of a graph, those with the most bytes first, each with a colour.

    Args:
        dimensions: of the graph that is drawn.
        variables: that are drawn.
    """

    def __init__(self, dimensions: Dimensions, variables: Iterable[Variable]) -> None:
        self._dimensions = dimensions
        carried = {name for v in variables for name in self._names(v)}
        ranked = sorted(carried, key=lambda name: -_bytes(dimensions[name]))
        self._rest = len(ranked[len(COLOURS) :])
        self._number = {name: k for k, name in enumerate(ranked[: len(COLOURS)])}

    def _names(self, variable: Variable) -> list[str]:
        if isinstance(variable, Bundle):
            return []
        names = self._dimensions.names_of(variable)
        return [name for name in dict.fromkeys(names) if name is not None]

    def __bool__(self) -> bool:
        return bool(self._number)

    def beside(self, variable: Variable) -> float:
        """Return how far stripes reach from the middle of a wire, in points."""
        count = sum(name in self._number for name in self._names(variable))
        return STRIPE * count

    def stripes(self, points: Sequence[Point], variable: Variable, is_arrow: bool) -> list[Curve]:
        """Return the stripes beneath a wire that carries a variable, the widest first."""
        points = tuple(shortened(points) if is_arrow else points)
        shown = [self._number[name] for name in self._names(variable) if name in self._number]
        widths = (CORE + 2 * STRIPE * k for k in range(len(shown), 0, -1))
        return [Curve(points, f"stripe{k}", False, "", w) for k, w in zip(shown, widths)]

    def add_legend(self, scene: Scene) -> None:
        """Write below a picture which colour is which dimension, and its size."""
        ends = [(x, y) for curve in scene.curves for x, y in curve.points]
        boxes = [(s.x, s.y, s.width / 2, s.height / 2) for s in scene.shapes]
        ends += [
            (x + side * width, y + height) for x, y, width, height in boxes for side in (-1, 1)
        ]
        ends += [text.extent[k : k + 2] for text in scene.texts for k in (0, 2)]
        left, right = min(x for x, _ in ends), max(x for x, _ in ends)
        x, y = left, max(y for _, y in ends) + LEGEND_GAP
        entries = [
            (f"swatch{k}", f"{name} {self._dimensions[name].size:,}")
            for name, k in self._number.items()
        ]
        if self._rest:
            entries.append(("", f"{self._rest} more without a colour"))
        for role, words in entries:
            width = measure(roman(words), LEGEND_SIZE)
            if x > left and x + SWATCH + 5 + width > right:
                x, y = left, y + LEGEND_GAP
            if role:
                scene.shapes.append(Shape("rectangle", x + SWATCH / 2, y, SWATCH, SWATCH, 2, role))
                x += SWATCH + 5
            scene.texts.append(Text(x + width / 2, y, roman(words), LEGEND_SIZE, "ink"))
            x += width + LEGEND_GAP


def _bytes(dimension: Dimension) -> int:
    return dimension.bytes + dimension.argument_bytes
