"""``shard_map`` runs both sweeps on every device's block, on the mesh that the forward ran on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep, only, spread_over
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


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class MeshResiduals:
    """The residuals of all devices are whole arrays here, a pytree with how to cut them again."""

    arrays: list[Any]
    layout: _Layout = field(metadata={"static": True})


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
        out_specs = only(self.out_specs, self.needed)
        kept_specs: list[P] = []  # filled by the trace, read by shard_map when it is over
        found: dict[str, Any] = {}

        def body(*blocks: Any) -> tuple[list[Any], list[Any]]:
            outs, residuals = sweeps.forward(self.plan, self.consts, blocks)
            outs = only(outs, self.needed)
            leaves, found["tree"] = jax.tree.flatten(residuals)
            sources: list[tuple[str, int]] = []
            kept: list[Any] = []
            seen = {id(x): ("output", k) for k, x in self._reusable(outs, out_specs)}
            seen.update({id(x): ("operand", i) for i, x in enumerate(blocks)})
            for leaf in leaves:
                if id(leaf) not in seen:
                    seen[id(leaf)] = ("kept", len(kept))
                    kept.append(jnp.asarray(leaf))
                sources.append(seen[id(leaf)])
            kept_specs[:] = [self._spec(x) for x in kept]
            found["sources"], found["scalars"] = sources, [x.ndim == 0 for x in kept]
            return outs, [lax.broadcast(x, (1,)) if x.ndim == 0 else x for x in kept]

        run = self._on_mesh(body, list(self.in_specs), (out_specs, kept_specs))
        values, kept = run(*operands)
        arrays = {"operand": operands, "output": values, "kept": kept}
        specs = {"operand": self.in_specs, "output": out_specs, "kept": kept_specs}
        order = {source: i for i, source in enumerate(dict.fromkeys(found["sources"]))}
        layout = _Layout(
            found["tree"],
            tuple(order[source] for source in found["sources"]),
            tuple(specs[kind][k] for kind, k in order),
            tuple(kind == "kept" and found["scalars"][k] for kind, k in order),
        )
        residuals = MeshResiduals([arrays[kind][k] for kind, k in order], layout)
        return spread_over(values, self.needed), residuals

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the body's reverse sweep on every device; the copies' cotangents are summed."""
        layout = residuals.layout
        given = [bar is not None for bar in cotangents]
        bar_specs: list[P] = []  # filled by the trace, read by shard_map when it is over
        reached: list[bool] = []

        def body(arrays: Sequence[Any], bars: Sequence[Any]) -> list[Any]:
            pairs = zip(arrays, layout.scalars, strict=True)
            blocks = [lax.squeeze(x, [0]) if scalar else x for x, scalar in pairs]
            inner = jax.tree.unflatten(layout.tree, [blocks[k] for k in layout.places])
            shares = list(map(self._share, bars, out_specs))
            found = sweeps.reverse(self.plan, inner, spread_over(shares, given))
            reached[:] = [bar is not None for bar in found]
            in_specs = only(self.in_specs, reached)
            bar_specs[:] = map(_jax.cotangent_spec, in_specs)
            return list(map(self._add_copies, only(found, reached), in_specs))

        out_specs = only(self.out_specs, given)
        specs = (list(layout.specs), list(map(_jax.cotangent_spec, out_specs)))
        run = self._on_mesh(body, specs, bar_specs)
        return spread_over(run(residuals.arrays, only(cotangents, given)), reached)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the body's forward-mode sweep on every device."""
        given = [dot is not None for dot in dots]
        moved: list[bool] = []
        dot_specs: list[P] = []  # filled by the trace, read by shard_map when it is over

        def body(blocks: Sequence[Any], block_dots: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            in_dots = spread_over(block_dots, given)
            outs, found = sweep(self.jaxpr, self.consts, blocks, in_dots, self.options)
            moved[:] = [dot is not None for dot in found]
            dot_specs[:] = only(self.out_specs, moved)
            return list(outs), only(found, moved)

        in_specs = (list(self.in_specs), only(self.in_specs, given))
        run = self._on_mesh(body, in_specs, (list(self.out_specs), dot_specs))
        outs, found = run(list(operands), only(dots, given))
        return outs, spread_over(found, moved)

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

    def _reusable(self, outs: Sequence[Any], specs: Sequence[P]) -> list[tuple[int, Any]]:
        """Find the outputs that come back from the whole array as the block that was returned."""
        return [
            (k, x)
            for k, (x, spec) in enumerate(zip(outs, specs))
            if not self.check_vma or _jax.varying_axes(jax.typeof(x)) == _mentioned(spec)
        ]

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
