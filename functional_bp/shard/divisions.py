"""The ways in which a step may be divided: layouts × microbatches × recomputation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from functional_bp.engine.axes import Role
from functional_bp.layouts.batch_law import BatchLaw, Law
from functional_bp.layouts.dimensions import Dimension, Dimensions
from functional_bp.shard.estimates import Lies, Names, Work

MOST_DIMENSIONS = 6  # that are tried on a mesh axis by themselves
TOGETHER = 0.1  # of a dimension's bytes may have another one of the same mesh axis
MICROBATCHES = (1, 2, 4, 8, 16)
DATA, MODEL = "data", "model"  # mesh axes


@dataclass(frozen=True)
class Division:
    """A candidate is one way to divide a step.

    Attributes:
        axes: each mesh axis with its devices, and the dimensions that it divides.
        store: parameters and optimizer state that are whole otherwise are divided over the first.
        microbatches: one after the other.
        recomputes: parts of the loss are made again in the reverse sweep.
    """

    axes: tuple[tuple[str, int, tuple[str, ...]], ...]
    store: bool = False
    microbatches: int = 1
    recomputes: bool = False

    @property
    def mesh(self) -> dict[str, int]:
        """Return the devices of each mesh axis."""
        return {name: devices for name, devices, _ in self.axes}

    @property
    def divided(self) -> dict[str, tuple[str, ...]]:
        """Return the dimensions on each mesh axis."""
        return {name: dimensions for name, _, dimensions in self.axes}

    @property
    def lies(self) -> list[Lies]:
        """Return the mesh axes as estimates take them."""
        return [Lies(devices, frozenset(names)) for _, devices, names in self.axes]

    @property
    def is_single(self) -> bool:
        """Say whether it divides one dimension over all devices, and nothing else."""
        return not self.store and [len(names) for _, _, names in self.axes] == [1]

    def __str__(self) -> str:
        told = [f"{' + '.join(names) or 'nothing'} over {n}" for _, n, names in self.axes]
        told += ["parameters stored in parts"] * self.store
        told += [f"{self.microbatches} microbatches"] * (self.microbatches > 1)
        told += ["recomputation"] * self.recomputes
        return ", ".join(told)


def divisions(
    found: Dimensions,
    work: Work,
    law: BatchLaw,
    mesh: Mapping[str, int] | int,
    recompute: bool = True,
) -> list[Division]:
    """List the candidates for so many devices, or for a mesh whose axes are given.

    Args:
        found: the dimensions of the loss.
        work: of it.
        law: of its batch, which says whether microbatches change it.
        mesh: devices, or the sizes of mesh axes by name.
        recompute: whether recomputation is among them.
    """
    layouts = list(dict.fromkeys(_layouts(found, work, mesh)))
    return [
        replace(c, microbatches=m, recomputes=again)
        for c in layouts
        for m in _microbatches(c, found, law)
        for again in (False, *[True] * recompute)
    ]


def _microbatches(division: Division, found: Dimensions, law: BatchLaw) -> list[int]:
    if law.kind not in (Law.MEAN, Law.SUM, Law.WEIGHTED):
        return [1]
    devices = math.prod(n for _, n, names in division.axes
                        if any(found[name].is_batch for name in names))  # fmt: skip
    return [m for m in MICROBATCHES if law.size % (m * devices) == 0]


def _layouts(found: Dimensions, work: Work, mesh: Mapping[str, int] | int) -> Iterator[Division]:
    for axes in _meshes(mesh):
        for divided in _assignments(found, work, axes):
            lies = tuple((name, n, names) for (name, n), names in zip(axes, divided))
            yield Division(lies)
            used = {name for names in divided for name in names}
            if any(used.isdisjoint(names) for names in _parameter_axes(found)):
                yield Division(lies, store=True)


def _parameter_axes(found: Dimensions) -> list[tuple[str | None, ...]]:
    """The dimensions of each array among the parameters."""
    pairs = zip(found.leaves, found.axes, strict=True)
    return [names for leaf, names in pairs if leaf.argument == 0 and names]


def _meshes(mesh: Mapping[str, int] | int) -> Iterator[tuple[tuple[str, int], ...]]:
    """One mesh axis, or two, whose devices make up all."""
    if not isinstance(mesh, int):
        yield tuple(mesh.items())
        return
    yield ((DATA, mesh),)
    for first in range(2, mesh // 2 + 1):
        if mesh % first == 0:
            yield ((DATA, first), (MODEL, mesh // first))


def _assignments(
    found: Dimensions, work: Work, axes: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Dimensions for every mesh axis: the batch on the first where there are several."""
    batch = tuple(d.name for d in found.values() if d.is_batch and divides(d, axes[0][1], found))
    for groups in _groups_on(found, work, axes):
        used = [name for names in groups for name in names]
        if len(set(used)) == len(used) and any(groups):
            if len(axes) == 1 or not batch or groups[0] == batch:
                yield groups
    if len(axes) == 1:
        yield ((),)  # only stored in parts


def _groups_on(
    found: Dimensions, work: Work, axes: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    if not axes:
        yield ()
        return
    (_, devices), *rest = axes
    for group in groups(found, work, devices):
        yield from ((group, *others) for others in _groups_on(found, work, rest))


def groups(found: Dimensions, work: Work, devices: int) -> list[tuple[str, ...]]:
    """Dimensions that may lie on one mesh axis: some alone, and those that no array has together.

    So the hidden units, the heads and the vocabulary of a transformer are one group.
    """
    fit = [d for d in found.values() if divides(d, devices, found) and not _is_looped(d)]
    batch = tuple(d.name for d in fit if d.is_batch)
    others = sorted((d for d in fit if not d.is_batch), key=_bytes, reverse=True)
    seeds = others[:MOST_DIMENSIONS]
    weights = _weights(work)
    closed = (_closed(seed, others, weights, found) for seed in seeds)
    singles = ((seed.name,) for seed in seeds)
    return [group for group in dict.fromkeys([batch, *closed, *singles]) if group]


def _is_looped(dimension: Dimension) -> bool:
    """Whether a loop goes over it, one step after the other."""
    return any(e.operation == "scan" for e in dimension.uses.get(Role.MIXED, ()))


def _bytes(dimension: Dimension) -> int:
    return dimension.bytes + dimension.argument_bytes


def divides(dimension: Dimension, devices: int, found: Dimensions) -> bool:
    """Say whether so many devices can share a dimension: everywhere among the arguments."""
    variables = [(found.leaves[p.leaf].variable, p.axis) for p in dimension.places]
    sizes = [v.shape[axis] for v, axis in variables if v is not None]
    return bool(sizes) and all(size % devices == 0 for size in sizes)


def _weights(work: Work) -> Counter[Names]:
    total = Counter[Names]()
    for shape, names in work.shapes.items():
        for key, count in names.items():
            total[key] += count * math.prod(shape)
    return total


def _closed(
    seed: Dimension, others: Sequence[Dimension], weights: Counter[Names], found: Dimensions
) -> tuple[str, ...]:
    """The group of a dimension: those that stand hardly beside it, nor beside one another."""
    group = {seed.name}
    for other in others:
        is_apart = all(_are_apart(other.name, name, weights, found) for name in group)
        if other.name not in group and other.argument_bytes and is_apart:
            group.add(other.name)
    return tuple(name for name in found if name in group)


def _are_apart(one: str, other: str, weights: Counter[Names], found: Dimensions) -> bool:
    """Whether no argument, and few values, have both dimensions."""
    if any(one in names and other in names for names in found.axes):
        return False
    sizes = [sum(n for names, n in weights.items() if dimension in names)
             for dimension in (one, other)]  # fmt: skip
    both = sum(n for names, n in weights.items() if one in names and other in names)
    return both <= TOGETHER * min(sizes)
