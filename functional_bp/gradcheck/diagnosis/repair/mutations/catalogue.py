"""The catalogue says which edits there are of an equation, by its primitive."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from functional_bp.gradcheck.diagnosis.repair.mutations import arithmetic, arrangement, indexing
from functional_bp.gradcheck.diagnosis.repair.mutations.calls import calls, functions, paddings
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site
from functional_bp.gradcheck.diagnosis.repair.mutations.scales import (
    literals,
    scaled,
    shifted,
    weighted,
)
from functional_bp.gradcheck.diagnosis.repair.program import in_scope

Entry = Callable[[Site], Iterator[Edit]]

# fmt: off
CATALOGUE: dict[str, tuple[Entry, ...]] = {
    **{name: (entry, arrangement.transposed_operand) for name, entry in {
        "add": arithmetic.add, "add_any": arithmetic.add, "sub": arithmetic.sub,
        "mul": arithmetic.mul, "div": arithmetic.div,
    }.items()},
    "neg": (arithmetic.neg,),
    "max": (arithmetic.extreme,), "min": (arithmetic.extreme,),
    "integer_pow": (arithmetic.exponent,), "square": (arithmetic.exponent,),
    "select_n": (arithmetic.select,),
    **{name: (arithmetic.compare,) for name in arithmetic.COMPARISONS},
    **{name: (arithmetic.unary,) for name in arithmetic.UNARY if name not in ("square", "neg")},
    **{name: (arithmetic.unary,) for name in arithmetic.SPECIAL}, "conj": (arithmetic.plain,),
    "convert_element_type": (arithmetic.cast,),
    **{name: (arrangement.cumulative,) for name in (
        "cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin",
    )},
    "scan": (arrangement.scan,),
    **{name: (indexing.elsewhere,) for name in indexing.INDEXED},
    "scatter": (arrangement.scatter, indexing.elsewhere), "slice": (arrangement.gathered,),
    "pad": (arrangement.pad,), "stack": (arrangement.concatenate,),
    "concatenate": (arrangement.concatenate, indexing.rolled, indexing.ends),
    "conv_general_dilated": (indexing.convolution,), "triangular_solve": (indexing.triangular,),
    "transpose": (arrangement.transpose,), "rev": (arrangement.rev,),
    "broadcast_in_dim": (arrangement.spread,), "dot_general": (arrangement.dot,),
}
# fmt: on
EVERYWHERE: tuple[Entry, ...] = (
    literals,
    scaled,
    weighted,
    shifted,
    arithmetic.conjugated,
    arrangement.moved,
    arithmetic.wrapped,
    indexing.parts,
    indexing.reordered,
    indexing.borders,
)


def catalogue(site: Site) -> Iterator[Edit]:
    """These edits of the equation by itself read no further values."""
    if not in_scope(site.result) and site.equation.name not in (*arithmetic.COMPARISONS, "scan"):
        yield from (edit for entry in CATALOGUE.get(site.equation.name, ()) for edit in entry(site))
        yield from indexing.triangles(site)
        return
    yield from calls(site)
    yield from functions(site)
    yield from paddings(site)
    yield from indexing.triangles(site)
    for entry in CATALOGUE.get(site.equation.name, ()):
        yield from entry(site)
    if in_scope(site.result) and len(site.equation.results) == 1:
        for entry in EVERYWHERE:
            yield from entry(site)
