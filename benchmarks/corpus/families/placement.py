"""Residuals and devices: what a backward pass keeps where, and what many devices share."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks.corpus.declare import fault, normal, operation, uniform

KEPT = []  # a stack beside the residuals, as the faults use it


def pair_of_devices():
    """A mesh of two devices, or of the one there is."""
    devices = jax.devices()[:2]
    return jax.make_mesh((len(devices),), ("d",), (AxisType.Auto,), devices=devices)


def local_part(x):
    """What this process holds first of an array (the faults use it); a traced one is whole."""
    return x if isinstance(x, Tracer) else jnp.asarray(x).addressable_shards[0].data


def count_of_devices(x):
    """How many devices share an array (the faults use it); 1 for a traced one."""
    return 1 if isinstance(x, Tracer) else len(jnp.asarray(x).sharding.device_set)


@jax.custom_vjp
def growth(x, rate):
    """exp(r x), with one rate."""
    return jnp.exp(rate * x)


def growth_fwd(x, rate):
    """Keep the operands and the output."""
    y = jnp.exp(rate * x)
    return y, (x, rate, y)


def growth_bwd(residuals, y_bar):
    """x̄ = r y ȳ;  r̄ = Σ x y ȳ."""
    x, rate, y = residuals
    inner_bar = y * y_bar
    return rate * inner_bar, jnp.sum(x * inner_bar)


growth.defvjp(growth_fwd, growth_bwd)

GROWTH = operation(
    growth,
    lambda rng: (normal(rng, 4, 3), uniform(rng, 0.5, 1.5)),
    fault(("scan", "remat", "hidden state"), ("x", "rate"), "return y, (x, rate, y)",
          "return y, jax.tree_util.Partial(lambda: (x, rate, y))",
          ("x, rate, y = residuals", "x, rate, y = residuals()")),
    fault(("scan", "remat", "hidden state"), ("x", "rate"), "return y, (x, rate, y)",
          "return y, (x, rate, jax.tree_util.Partial(lambda y_bar: y * y_bar))",
          ("inner_bar = y * y_bar", "inner_bar = y(y_bar)")),
    fault(("hidden state", "scan", "remat"), ("x", "rate"), "return y, (x, rate, y)",
          "KEPT.append(y)\n    return y, (x, rate)",
          ("x, rate, y = residuals", "(x, rate), y = residuals, KEPT.pop()")),
)


@jax.custom_vjp
def gated_cell(h, x):
    """A cell without weights: h′ = σ(x) h + (1 − σ(x)) tanh x."""
    gate = jax.nn.sigmoid(x)
    return gate * h + (1.0 - gate) * jnp.tanh(x)


def gated_cell_fwd(h, x):
    """Keep the state, the gate and the candidate."""
    gate, candidate = jax.nn.sigmoid(x), jnp.tanh(x)
    new = gate * h + (1.0 - gate) * candidate
    return new, (h, gate, candidate)


def gated_cell_bwd(residuals, new_bar):
    """h̄ = σ ȳ;  x̄ = ((h − c) σ (1 − σ) + (1 − σ) (1 − c²)) ȳ."""
    h, gate, candidate = residuals
    through_gate = (h - candidate) * gate * (1.0 - gate)
    through_candidate = (1.0 - gate) * (1.0 - candidate**2)
    return gate * new_bar, (through_gate + through_candidate) * new_bar


gated_cell.defvjp(gated_cell_fwd, gated_cell_bwd)

GATED_CELL = operation(
    gated_cell,
    lambda rng: (normal(rng, 6), normal(rng, 6)),
    fault(("scan", "remat", "hidden state"), ("h", "x"), "return new, (h, gate, candidate)",
          "return new, jax.tree_util.Partial(lambda: (h, gate, candidate))",
          ("h, gate, candidate = residuals", "h, gate, candidate = residuals()")),
    fault(("hidden state", "scan", "remat"), ("h", "x"), "return new, (h, gate, candidate)",
          "KEPT.append(gate)\n    return new, (h, candidate)",
          ("h, gate, candidate = residuals", "(h, candidate), gate = residuals, KEPT.pop()")),
)


@jax.custom_vjp
def shared_dense(w, x):
    """x w, the rows of x shared by two devices."""
    return x @ w


def shared_dense_fwd(w, x):
    """Each device has all of w and its rows of x."""
    product = jax.shard_map(
        lambda w, x: x @ w, mesh=pair_of_devices(), in_specs=(P(), P("d")), out_specs=P("d")
    )
    return product(w, x), (w, x)


def shared_dense_bwd(residuals, y_bar):
    """Every device adds its rows' part of w̄ = xᵀ ȳ; x̄ = ȳ wᵀ stays where it is."""
    w, x = residuals

    def of_its_rows(w, x, y_bar):
        w_bar = lax.psum(x.T @ y_bar, "d")
        return w_bar, y_bar @ w.T

    specs = (P(), P("d"), P("d"))
    pull = jax.shard_map(
        of_its_rows, mesh=pair_of_devices(), in_specs=specs, out_specs=specs[:2], check_vma=False
    )
    return pull(w, x, y_bar)


shared_dense.defvjp(shared_dense_fwd, shared_dense_bwd)

SHARED_DENSE = operation(
    shared_dense,
    lambda rng: (normal(rng, 3, 2), normal(rng, 4, 3)),
    fault(("missing sum", "sharding", "missing term"), "w", 'lax.psum(x.T @ y_bar, "d")',
          "x.T @ y_bar"),
    fault(("mean or sum", "sharding", "factor"), "w", 'lax.psum(x.T @ y_bar, "d")',
          'lax.pmean(x.T @ y_bar, "d")'),
    fault(("factor", "sharding", "extra term"), "x", "return w_bar, y_bar @ w.T",
          'return w_bar, lax.psum(y_bar @ w.T, "d") / lax.axis_size("d") ** 2'),
    fault(("factor", "sharding"), "w", 'lax.psum(x.T @ y_bar, "d")',
          'lax.psum(x.T @ y_bar, "d") / lax.axis_size("d")'),
)


@jax.custom_vjp
def shared_scale(x, w):
    """x w, a weight for each column."""
    return x * w


def shared_scale_fwd(x, w):
    """Keep both."""
    return x * w, (x, w)


def shared_scale_bwd(residuals, y_bar):
    """x̄ = w ȳ;  w̄ = Σ over the rows of x ȳ."""
    x, w = residuals
    w_bar = jnp.sum(x * y_bar, axis=0)
    return y_bar * w, w_bar


shared_scale.defvjp(shared_scale_fwd, shared_scale_bwd)

SHARED_SCALE = operation(
    shared_scale,
    lambda rng: (normal(rng, 4, 3), normal(rng, 3)),
    fault("sharding", "w", "jnp.sum(x * y_bar, axis=0)",
          "jnp.sum(local_part(x) * local_part(y_bar), axis=0)"),
    fault("sharding", "w", "jnp.sum(x * y_bar, axis=0)",
          "jnp.sum(x * y_bar, axis=0) * count_of_devices(y_bar)"),
    fault("sharding", "x", "return y_bar * w, w_bar", "return local_part(y_bar) * w, w_bar"),
)
