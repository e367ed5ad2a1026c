"""A function put inside scan, cond, remat, jit and shard_map, with the value unchanged.

An enclosure takes the function and two draws of its arguments, and returns a function of the two
draws stacked along a new first axis, whose outputs are stacked likewise: so each operation is met
with two different inputs, and whatever is kept per step or per device must not be mixed up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

Function = Callable[..., Any]


def leaves_of(function: Function) -> Function:
    """The function with a flat list of outputs."""
    return lambda *args: jax.tree.leaves(function(*args))


def in_scan(function: Function) -> Function:
    """One step of a scan per draw; the arguments come in as scanned inputs."""

    def enclosed(*stacked: Any) -> list[Any]:
        step = lambda count, args: (count + 1, leaves_of(function)(*args))
        return lax.scan(step, 0, stacked)[1]

    return enclosed


def _per_draw(function: Function) -> Function:
    def enclosed(*stacked: Any) -> list[Any]:
        parts = [function(*[x[k] for x in stacked]) for k in range(2)]
        return [jnp.stack(pair) for pair in zip(*parts)]

    return enclosed


def in_cond(function: Function) -> Function:
    """A branch that is taken for both draws; the other branch gives zeros."""
    plain = leaves_of(function)

    def chosen(*args: Any) -> list[Any]:
        none = lambda *args: [jnp.zeros_like(y) for y in jax.eval_shape(plain, *args)]
        first = args[0].ravel()
        predicate = (first[0] == first[0]) if first.size else jnp.asarray(True)
        return lax.cond(predicate, plain, none, *args)

    return _per_draw(chosen)


def in_remat(function: Function) -> Function:
    """``jax.checkpoint``: run again in the reverse sweep."""
    return _per_draw(jax.checkpoint(leaves_of(function)))


def in_jit(function: Function) -> Function:
    """A nested ``jax.jit``."""
    return _per_draw(jax.jit(leaves_of(function)))


def in_shard_map(function: Function) -> Function:
    """One draw per device of a mesh of two."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(*args: Any) -> list[Any]:
        return [y[None] for y in leaves_of(function)(*[x[0] for x in args])]

    return jax.shard_map(local, mesh=mesh, in_specs=P("i"), out_specs=P("i"))


def in_vmap(function: Function) -> Function:
    """``jax.vmap`` inside the differentiated function."""
    return jax.vmap(leaves_of(function))


ENCLOSURES: dict[str, Callable[[Function], Function]] = {
    "scan": in_scan,
    "cond": in_cond,
    "remat": in_remat,
    "jit": in_jit,
    "vmap": in_vmap,
    **({"shard_map": in_shard_map} if len(jax.devices()) > 1 else {}),
}


def measure(case: Any, vjp: Any, quick: Callable[[Function], Function]) -> dict[str, Any]:
    """Cotangents of both draws: ``true`` by a loop, one entry per enclosure, both ways round.

    ``"scan"`` is the gradient of a function that holds a scan, ``"gradient in scan"`` a scan whose
    body computes a gradient. An enclosure that JAX itself refuses for this function is left out.
    """
    from measuring import Probe, pull

    probe = Probe(case)
    stacked = [jnp.stack(pair) for pair in zip(probe.args, probe.other)]
    bars = [jnp.stack(pair) for pair in zip(probe.a, probe.b)]
    reference = case.reference or case.function

    def accepted(name: str, enclose: Callable[[Function], Function]) -> bool:
        if name == "vmap" and not case.batchable:
            return False
        try:
            around = enclose(reference)
            theirs = lambda *args: pull(jax.vjp, around, args, probe.everything)[1](bars)
            jax.eval_shape(theirs, *stacked)
            jax.eval_shape(enclose(case.function), *stacked)
        except Exception:  # whatever JAX says there, it is JAX that says it
            return False
        return True

    usable = {name: enclose for name, enclose in ENCLOSURES.items() if accepted(name, enclose)}

    def claim(stacked: Any, bars: Any) -> dict[str, Any]:
        def own(*inputs: Any) -> list[Any]:
            count = len(stacked)
            args, given = inputs[:count], inputs[count:]
            return pull(vjp, case.function, args, probe.everything)[1](given)

        found = {}
        for name, enclose in usable.items():
            around = enclose(case.function)
            found[name] = pull(vjp, around, stacked, probe.everything)[1](bars)
            found[f"gradient in {name}"] = enclose(own)(*stacked, *bars)
        return found

    def exact(args: Any, bars: Any) -> Any:
        return pull(jax.vjp, reference, args, probe.everything)[1](bars)

    exact = quick(exact)
    pairs = zip(exact(probe.args, probe.a), exact(probe.other, probe.b))
    true = [np.stack(pair) for pair in pairs]
    return {"found": jax.device_get(quick(claim)(stacked, bars)), "true": true, "probe": probe}
