"""The catalogue says which edits there are of an equation, by its primitive."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from functional_bp.gradcheck.diagnosis.repair.mutations import arrangement, entrywise, regions
from functional_bp.gradcheck.diagnosis.repair.mutations.library_calls import (
    calls,
    functions,
    paddings,
)
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
        "add": entrywise.add, "add_any": entrywise.add, "sub": entrywise.sub,
        "mul": entrywise.mul, "div": entrywise.div,
    }.items()},
    "neg": (entrywise.neg,),
    "max": (entrywise.extreme,), "min": (entrywise.extreme,),
    "integer_pow": (entrywise.exponent,), "square": (entrywise.exponent,),
    "select_n": (entrywise.select,),
    **{name: (entrywise.compare,) for name in entrywise.COMPARISONS},
    **{name: (entrywise.unary,) for name in entrywise.UNARY if name not in ("square", "neg")},
    **{name: (entrywise.unary,) for name in entrywise.SPECIAL}, "conj": (entrywise.plain,),
    "convert_element_type": (entrywise.cast,),
    **{name: (arrangement.cumulative,) for name in (
        "cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin",
    )},
    "scan": (arrangement.scan,),
    **{name: (regions.elsewhere,) for name in regions.INDEXED},
    "scatter": (arrangement.scatter, regions.elsewhere), "slice": (arrangement.gathered,),
    "pad": (arrangement.pad,), "stack": (arrangement.concatenate,),
    "concatenate": (arrangement.concatenate, regions.rolled, regions.ends),
    "conv_general_dilated": (regions.convolution,), "triangular_solve": (regions.triangular,),
    "transpose": (arrangement.transpose,), "rev": (arrangement.rev,),
    "broadcast_in_dim": (arrangement.spread,), "dot_general": (arrangement.dot,),
}
# fmt: on
EVERYWHERE: tuple[Entry, ...] = (
    literals,
    scaled,
    weighted,
    shifted,
    entrywise.conjugated,
    arrangement.moved,
    entrywise.wrapped,
    regions.parts,
    regions.reordered,
    regions.borders,
)


def catalogue(site: Site) -> Iterator[Edit]:
    """These edits of the equation by itself read no further values."""
    if not in_scope(site.result) and site.equation.name not in (*entrywise.COMPARISONS, "scan"):
        yield from (edit for entry in CATALOGUE.get(site.equation.name, ()) for edit in entry(site))
        yield from regions.triangles(site)
        return
    yield from calls(site)
    yield from functions(site)
    yield from paddings(site)
    yield from regions.triangles(site)
    for entry in CATALOGUE.get(site.equation.name, ()):
        yield from entry(site)
    if in_scope(site.result) and len(site.equation.results) == 1:
        for entry in EVERYWHERE:
            yield from entry(site)
