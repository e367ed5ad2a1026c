"""An array may move between devices, memories, layouts and shardings; its values pass unchanged.

y = x, so x̄ = ȳ, brought back to where x lives. With explicit sharding the engine does that by
itself, because a cotangent carries its primal's sharding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jax.sharding import AxisType, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from functional_bp import _jax
from functional_bp.engine.rule import case, linear, real, rule
from functional_bp.vjps.calls import each_its_own
from functional_bp.vjps.sharded import mesh_size

sharding_constraint_p: Any = _jax.find_primitive("pjit.sharding_constraint_p")
layout_constraint_p: Any = _jax.find_primitive("pjit.layout_constraint_p")


def by_rows(devices: int, axis_type: AxisType) -> NamedSharding:
    """Divide rows over a mesh of the first ``devices`` devices."""
    mesh = jax.make_mesh((devices,), ("i",), (axis_type,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, P("i"))


def moved_back(ys_bar, xs_t, ys_t, index, *, srcs):
    """x̄ = ȳ, on the device or in the memory that x came from, where that is known.

    Derivation: y = x.
    """
    y_bar, home = ys_bar[index], srcs[index]
    if y_bar is None:
        return None
    if home is None and xs_t[index].memory_space != ys_t[index].memory_space:
        home = xs_t[index].memory_space
    return y_bar if home is None else jax.device_put(y_bar, home)


def resharded_back(y_bar, x_t):
    """x̄ = ȳ, in the sharding of x (and on x's mesh, whose axes may be of another type).

    Derivation: y = x.
    """
    home = x_t.sharding
    if home.mesh.empty:
        return y_bar
    with use_abstract_mesh(home.mesh):
        return jax.reshard(y_bar, home.update(spec=_jax.cotangent_spec(home.spec)))


def _put(x: Any) -> Any:
    return jnp.sin(jax.device_put(x, jax.devices()[0])) * x


def _put_pair(x: Any, y: Any) -> Any:
    x, y = jax.device_put((x, y), jax.devices()[0], src=jax.devices()[0])
    return jnp.sin(x) * y


def _constrain(x: Any) -> Any:
    return jnp.sin(lax.with_sharding_constraint(x * x, by_rows(mesh_size(), AxisType.Auto)))


def _reshard(x: Any) -> Any:
    return jnp.sin(jax.reshard(x, by_rows(1, AxisType.Explicit)))


def _column_major(x: Any) -> Any:
    constrain = _jax.find_helper("pjit.with_layout_constraint")
    layout = _jax.find_helper("layout.Layout")
    return jnp.sin(constrain(x * x, layout(major_to_minor=(1, 0))))


rule(primitives.device_put_p, "*xs -> *ys", linear="xs", xs=moved_back, axes=each_its_own,
     cases=[case(_put, real(3)), case(_put_pair, real(3), real(3))])

linear(sharding_constraint_p, "x -> y",
     x=lambda y_bar, **asked: sharding_constraint_p.bind(y_bar, **asked),
     why="y = x, laid out as asked; x̄ = ȳ, laid out likewise.",
     cases=[case(_constrain, real(4, 3))])

linear(layout_constraint_p, "x -> y",
     x=lambda y_bar, *, layout: layout_constraint_p.bind(y_bar, layout=layout),
     why="y = x, in the memory layout asked for; x̄ = ȳ, likewise.",
     cases=[case(jax.jit(_column_major), real(4, 3), batchable=False)])

linear(_jax.find_primitive("pjit.reshard_p"), "x -> y", x=resharded_back,
     cases=[case(_reshard, real(4, 3))])
