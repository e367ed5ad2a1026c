"""``shard_map`` runs both sweeps on every device's block, on the mesh that the forward ran on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep
from functional_bp.engine.plan import make_plan, out_activity
from functional_bp.engine.rule import case, higher_order, real

REPLICATED, BY_ROWS = P(), P("i")


def mesh_size() -> int:
    """Return how many devices ``blockwise`` spreads a test over: two if there are two."""
    return min(2, jax.device_count())


def blockwise(
    function: Callable[..., Any], out: Any = BY_ROWS, check_vma: bool = True
) -> Callable[..., Any]:
    """Run ``function`` on each device's rows, over mesh axis ``i``, as a test of collectives."""

    def of_whole(*arrays: Any) -> Any:
        devices = jax.devices()[: mesh_size()]
        mesh = jax.make_mesh((len(devices),), ("i",), (AxisType.Auto,), devices=devices)
        return jax.shard_map(
            function, mesh=mesh, in_specs=BY_ROWS, out_specs=out, check_vma=check_vma
        )(*arrays)

    return of_whole


class _Layout(NamedTuple):
    """A layout says how a body's residuals, a pytree, are found again in arrays over the whole
    mesh.
    """

    tree: Any
    places: tuple[int, ...]  # per leaf, the array that holds it
    specs: tuple[P, ...]  # per array
    scalars: tuple[bool, ...]  # per array: blocks of shape () travel as (1,)


@jax.tree_util.register_pytree_node_class
class MeshResiduals:
    """The residuals of all devices are whole arrays here, a pytree with how to cut them again."""

    def __init__(self, arrays: Sequence[Any], layout: _Layout) -> None:
        self.arrays, self.layout = arrays, layout

    def tree_flatten(self) -> tuple[Any, _Layout]:
        """Return the arrays, and the layout that goes with them."""
        return tuple(self.arrays), self.layout

    @classmethod
    def tree_unflatten(cls, layout: _Layout, arrays: Any) -> MeshResiduals:
        """Undo ``tree_flatten``."""
        return cls(arrays, layout)


def _sum_of_squares(x: Any) -> Any:
    return lax.psum(jnp.sum(jnp.sin(x) ** 2), "i")


def _scalar_residual(x: Any) -> Any:
    return x * jnp.exp(jnp.sum(x * x) / 9)


@higher_order(
    _jax.find_primitive("shard_map.shard_map_p"),
    cases=[
        case(blockwise(lambda x, y: jnp.sin(x) * y), real(4, 3), real(4, 3)),
        case(blockwise(lambda x, y: jnp.sin(x) * y, check_vma=False), real(4), real(4)),
        case(blockwise(_scalar_residual), real(4, 2), note="a residual of shape ()"),
        case(blockwise(_sum_of_squares, out=REPLICATED), real(4, 2)),
        case(blockwise(_sum_of_squares, out=REPLICATED, check_vma=False), real(4, 2)),
    ],
)
class ShardMap(HigherOrder):
    """x̄ = the reverse sweep of the body, on every device's block of ȳ.

    Derivation: write E for the cutting of a whole array into blocks (the specs) and f for the body
    on all devices' blocks together; y = E_out⁻¹ f(E_in x). A spec that mentions every manual axis
    makes E a permutation of entries, so x̄ = E_in⁻¹ fᵀ(E_out ȳ). A spec that leaves out axes of n
    devices in total copies a block n times. With varying types (``check_vma=True``) f's own types
    say which blocks are one value, and nothing is left to do. Untyped, the copies of x are summed

        x̄ = Σ over the copies of fᵀ(…),

    and an output of n equal copies is read as their mean, y = (1/n) Σ yᵈ, so each gets ȳ/n.

    Residuals: those of the body, as further outputs of the forward sweep whose blocks stay where
    they are (concatenated along the first axis over the mesh axes that they vary over; untyped,
    over all manual axes). One that is an operand or an output of the body is taken from there.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params["jaxpr"])
        self.mesh, self.check_vma = eqn.params["mesh"], eqn.params["check_vma"]
        self.in_specs, self.out_specs = eqn.params["in_specs"], eqn.params["out_specs"]
        self.axes = eqn.params["newly_manual_axes"]
        self.out_active = self._decided_on_mesh(lambda: out_activity(self.jaxpr, active, options))

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body's sweeps."""
        key = self.jaxpr, self.active, seeded, needed, self.options
        self.plan = self._decided_on_mesh(lambda: make_plan(*key))
        self.wanted, self.needed = self.plan.reached, needed

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the body's forward sweep on every device; residuals are further outputs."""
        positions = [i for i, on in enumerate(self.needed) if on]
        kept_specs: list[P] = []  # filled by the trace, read by shard_map when it is over
        found: dict[str, Any] = {}

        def body(*blocks: Any) -> tuple[list[Any], list[Any]]:
            outs, residuals = sweeps.forward(self.plan, self.consts, blocks)
            outs = [outs[i] for i in positions]
            leaves, found["tree"] = jax.tree.flatten(residuals)
            sources: list[tuple[str, int]] = []
            kept: list[Any] = []
            seen = {id(x): ("kept from outputs", k) for k, x in self._reusable(outs, positions)}
            seen.update({id(x): ("operand", i) for i, x in enumerate(blocks)})
            for leaf in leaves:
                if id(leaf) not in seen:
                    seen[id(leaf)] = ("kept", len(kept))
                    kept.append(jnp.asarray(leaf))
                sources.append(seen[id(leaf)])
            kept_specs[:] = [self._spec(x) for x in kept]
            found["sources"], found["scalars"] = sources, [x.ndim == 0 for x in kept]
            return outs, [lax.broadcast(x, (1,)) if x.ndim == 0 else x for x in kept]

        out_specs = ([self.out_specs[i] for i in positions], kept_specs)
        values, kept = self._on_mesh(body, list(self.in_specs), out_specs)(*operands)
        outs: list[Any] = [None] * len(self.needed)
        for i, value in zip(positions, values):
            outs[i] = value
        arrays: dict[tuple[str, int], tuple[Any, P, bool]] = {}
        for source in found["sources"]:
            kind, k = source
            if kind == "operand":
                arrays[source] = operands[k], self.in_specs[k], False
            elif kind == "kept":
                arrays[source] = kept[k], kept_specs[k], found["scalars"][k]
            else:
                arrays[source] = values[k], self.out_specs[positions[k]], False
        order = {source: k for k, source in enumerate(arrays)}
        layout = _Layout(
            found["tree"],
            tuple(order[source] for source in found["sources"]),
            tuple(spec for _, spec, _ in arrays.values()),
            tuple(scalar for *_, scalar in arrays.values()),
        )
        return outs, MeshResiduals([array for array, *_ in arrays.values()], layout)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the body's reverse sweep on every device; the copies' cotangents are summed."""
        layout = residuals.layout
        given = [i for i, bar in enumerate(cotangents) if bar is not None]
        bar_specs: list[P] = []  # filled by the trace, read by shard_map when it is over
        positions: list[int] = []

        def body(arrays: Sequence[Any], bars: Sequence[Any]) -> list[Any]:
            pairs = zip(arrays, layout.scalars, strict=True)
            blocks = [lax.squeeze(x, [0]) if scalar else x for x, scalar in pairs]
            inner = jax.tree.unflatten(layout.tree, [blocks[k] for k in layout.places])
            out_bars: list[Any] = [None] * len(cotangents)
            for i, bar in zip(given, bars, strict=True):
                out_bars[i] = self._share(bar, self.out_specs[i])
            found = sweeps.reverse(self.plan, inner, out_bars)
            positions[:] = [i for i, bar in enumerate(found) if bar is not None]
            bar_specs[:] = [_jax.cotangent_spec(self.in_specs[i]) for i in positions]
            return [self._add_copies(found[i], self.in_specs[i]) for i in positions]

        in_specs = (list(layout.specs), [_jax.cotangent_spec(self.out_specs[i]) for i in given])
        arrays, bars = list(residuals.arrays), [cotangents[i] for i in given]
        values = self._on_mesh(body, in_specs, bar_specs)(arrays, bars)
        operand_bars: list[Any] = [None] * len(self.in_specs)
        for i, value in zip(positions, values, strict=True):
            operand_bars[i] = value
        return operand_bars

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the body's forward-mode sweep on every device."""
        given = [i for i, dot in enumerate(dots) if dot is not None]
        positions: list[int] = []
        dot_specs: list[P] = []  # filled by the trace, read by shard_map when it is over

        def body(blocks: Sequence[Any], block_dots: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            in_dots: list[Any] = [None] * len(blocks)
            for i, dot in zip(given, block_dots, strict=True):
                in_dots[i] = dot
            outs, found = sweep(self.jaxpr, self.consts, blocks, in_dots, self.options)
            positions[:] = [i for i, dot in enumerate(found) if dot is not None]
            dot_specs[:] = [self.out_specs[i] for i in positions]
            return list(outs), [found[i] for i in positions]

        in_specs = (list(self.in_specs), [self.in_specs[i] for i in given])
        run = self._on_mesh(body, in_specs, (list(self.out_specs), dot_specs))
        outs, values = run(list(operands), [dots[i] for i in given])
        out_dots: list[Any] = [None] * len(outs)
        for i, value in zip(positions, values, strict=True):
            out_dots[i] = value
        return outs, out_dots

    def _decided_on_mesh(self, decide: Callable[[], Any]) -> Any:
        """Return what ``decide`` returns, which may trace parts of the body, whose types vary
        there.
        """
        found: list[Any] = []

        def body(*_: Any) -> list[Any]:
            found.append(decide())
            return []

        jax.eval_shape(
            self._on_mesh(body, list(self.in_specs), []), *[a.aval for a in self.eqn.invars]
        )
        return found[0]

    def _on_mesh(self, body: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        in_specs = tuple(in_specs)
        return jax.shard_map(
            body, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs,
            axis_names=self.axes, check_vma=self.check_vma,
        )

    def _reusable(self, outs: Sequence[Any], positions: Sequence[int]) -> list[tuple[int, Any]]:
        """Find the outputs that come back from the whole array as the block that was returned."""
        return [
            (k, x)
            for k, (x, i) in enumerate(zip(outs, positions))
            if not self.check_vma or _jax.varying_axes(jax.typeof(x)) == self.jaxpr_axes(i)
        ]

    def jaxpr_axes(self, i: int) -> frozenset[str]:
        """Return the manual axes that output ``i``, cut from the whole array, varies over."""
        return frozenset(_mentioned(self.out_specs[i]))

    def _spec(self, block: Any) -> P:
        """Say where a residual's blocks stay: side by side along its first axis."""
        if self.check_vma:
            return _jax.side_by_side(jax.typeof(block), self.mesh.axis_names)
        names = tuple(name for name in self.mesh.axis_names if name in self.axes)
        return P(names[0] if len(names) == 1 else names)

    def _copies(self, spec: P) -> tuple[str, ...]:
        mentioned = _mentioned(spec)
        return tuple(n for n in self.mesh.axis_names if n in self.axes and n not in mentioned)

    def _share(self, bar: Any, spec: P) -> Any:
        count = 1 if self.check_vma else math.prod(self.mesh.shape[n] for n in self._copies(spec))
        return bar if count == 1 else lax.div(bar, jnp.asarray(count, bar.dtype))

    def _add_copies(self, bar: Any, spec: P) -> Any:
        names = () if self.check_vma else self._copies(spec)
        return lax.psum(bar, names) if names else bar


def _mentioned(spec: P) -> set[str]:
    """Return the mesh axes that a spec names."""
    return {
        name
        for part in spec
        if part is not None
        for name in (part if isinstance(part, tuple) else (part,))
    } | set(getattr(spec, "unreduced", ()))
