"""Physics: energies, forces, steps of integrators, a heat equation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import fault, normal, operation, uniform


@jax.custom_vjp
def lennard_jones(r, sigma):
    """Σ 4 ((σ/r)¹² − (σ/r)⁶) over pair distances, one σ."""
    p = (sigma / r) ** 6
    return jnp.sum(4.0 * (p**2 - p))


def lennard_jones_fwd(r, sigma):
    """Keep the distances, σ and p = (σ/r)⁶."""
    p = (sigma / r) ** 6
    return jnp.sum(4.0 * (p**2 - p)), (r, sigma, p)


def lennard_jones_bwd(residuals, energy_bar):
    """dE/dp = 4 (2p − 1);  dp/dr = −6 p/r;  dp/dσ = 6 p/σ."""
    r, sigma, p = residuals
    p_bar = 4.0 * energy_bar * (2.0 * p - 1.0)
    r_bar = -6.0 * p_bar * p / r
    sigma_bar = jnp.sum(6.0 * p_bar * p / sigma)
    return r_bar, sigma_bar


lennard_jones.defvjp(lennard_jones_fwd, lennard_jones_bwd)

LENNARD_JONES = operation(
    lennard_jones,
    lambda rng: (uniform(rng, 0.9, 2.0, 8), np.float32(1.1)),
    fault("sign", "r", "r_bar = -6.0", "r_bar = 6.0"),
    fault(("factor", "wrong constant"), "r", "-6.0 * p_bar", "-12.0 * p_bar"),
    fault(("missing factor", "wrong constant"), ("r", "sigma"), "(2.0 * p - 1.0)", "(p - 1.0)"),
    fault(("structure", "missing sum"), "sigma", "jnp.sum(6.0 * p_bar * p / sigma)",
          "6.0 * p_bar * p / sigma"),
    fault(("missing factor", "wrong operand"), "sigma", "p_bar * p / sigma)", "p_bar * p / r)"),
    fault("region", "r", "-6.0 * p_bar * p / r", "-6.0 * p_bar * p / r * (r < 2.5)",
          elsewhere=lambda rng: (uniform(rng, 2.6, 3.0, 8), np.float32(1.1))),
    fault(("region", "overflow", "not finite"), "r", "p_bar = 4.0 * energy_bar * (2.0 * p - 1.0)",
          "p_bar = 4.0 * energy_bar * (2.0 * jnp.minimum(p, 100.0) - 1.0)",
          elsewhere=lambda rng: (uniform(rng, 0.3, 0.4, 8), np.float32(1.1))),
    fault("second order", ("r", "sigma"), "r, sigma, p = residuals",
          "r, sigma, p = residuals\n    p = lax.stop_gradient(p)", order=2),
)


@jax.custom_vjp
def coulomb(positions, charges):
    """Σ_{i<j} q_i q_j / |x_i − x_j|."""
    i, j = np.triu_indices(positions.shape[0], 1)
    distance = jnp.sqrt(jnp.sum((positions[i] - positions[j]) ** 2, axis=1))
    return jnp.sum(charges[i] * charges[j] / distance)


def coulomb_fwd(positions, charges):
    """Keep the operands."""
    return coulomb(positions, charges), (positions, charges)


def coulomb_bwd(residuals, energy_bar):
    """Forces from all ordered pairs, the potential at each charge."""
    positions, charges = residuals
    count = positions.shape[0]
    between = positions[:, None] - positions[None]
    squared = jnp.sum(between**2, axis=-1) + jnp.eye(count, dtype=positions.dtype)
    others = 1.0 - jnp.eye(count, dtype=positions.dtype)
    inverse = others / jnp.sqrt(squared)
    pairs = charges[:, None] * charges[None] * inverse**3
    positions_bar = -energy_bar * jnp.sum(pairs[..., None] * between, axis=1)
    charges_bar = energy_bar * inverse @ charges
    return positions_bar, charges_bar


coulomb.defvjp(coulomb_fwd, coulomb_bwd)

COULOMB = operation(
    coulomb,
    lambda rng: (2 * normal(rng, 5, 3), normal(rng, 5)),
    fault("factor", "positions", "positions_bar = -energy_bar",
          "positions_bar = -0.5 * energy_bar"),
    fault(("sign", "axis"), "positions", "* between, axis=1)", "* between, axis=0)"),
    fault(("missing factor", "wrong constant"), "positions", "inverse**3", "inverse**2"),
    fault(("wrong operand", "missing factor"), "positions",
          "charges[:, None] * charges[None] * inverse**3", "charges[:, None] * inverse**3"),
    fault(("missing factor", "wrong operand", "wrong function"), "charges",
          "energy_bar * inverse @ charges", "energy_bar * jnp.sum(inverse, axis=1)"),
    fault(("precision", "extra term", "missing factor", "wrong constant"), "positions",
          "jnp.sum(between**2, axis=-1) + jnp.eye",
          "jnp.sum(between**2, axis=-1) + 1e-5 + jnp.eye"),
)


@jax.custom_vjp
def leapfrog(q, p, stiffness):
    """Eight steps of a harmonic oscillator's leapfrog, h = 0.1."""

    def step(state, _):
        q, p = state
        p = p - 0.05 * stiffness * q
        q = q + 0.1 * p
        return (q, p - 0.05 * stiffness * q), None

    return lax.scan(step, (q, p), length=8)[0]


def leapfrog_fwd(q, p, stiffness):
    """Keep the last state: the steps can be undone."""
    last = leapfrog(q, p, stiffness)
    return last, (*last, stiffness)


def leapfrog_bwd(residuals, bars):
    """Undo each step, and pull the cotangents through it."""
    q, p, stiffness = residuals

    def step(carry, _):
        q, p, q_bar, p_bar, stiffness_bar = carry
        stiffness_bar = stiffness_bar - 0.05 * p_bar * q
        q_bar = q_bar - 0.05 * stiffness * p_bar
        p = p + 0.05 * stiffness * q
        p_bar = p_bar + 0.1 * q_bar
        q = q - 0.1 * p
        stiffness_bar = stiffness_bar - 0.05 * p_bar * q
        q_bar = q_bar - 0.05 * stiffness * p_bar
        p = p + 0.05 * stiffness * q
        return (q, p, q_bar, p_bar, stiffness_bar), None

    start = (q, p, *bars, jnp.zeros_like(stiffness))
    _, _, q_bar, p_bar, stiffness_bar = lax.scan(step, start, length=8)[0]
    return q_bar, p_bar, stiffness_bar


leapfrog.defvjp(leapfrog_fwd, leapfrog_bwd)

LEAPFROG = operation(
    leapfrog,
    lambda rng: (normal(rng, 4), normal(rng, 4), uniform(rng, 0.5, 2.0, 4)),
    fault("sign", ("q", "p", "stiffness"), "p_bar = p_bar + 0.1 * q_bar",
          "p_bar = p_bar - 0.1 * q_bar"),
    fault(("wrong constant", "factor"), ("q", "p", "stiffness"), "p_bar = p_bar + 0.1 * q_bar",
          "p_bar = p_bar + 0.05 * q_bar"),
    fault("missing term", "stiffness",
          "        q = q - 0.1 * p\n        stiffness_bar = stiffness_bar - 0.05 * p_bar * q\n",
          "        q = q - 0.1 * p\n"),
    fault(("sign", "wrong operand"), "stiffness", "q = q - 0.1 * p", "q = q + 0.1 * p"),
    fault(("off by one", "missing term", "wrong constant"), ("q", "p", "stiffness"),
          "lax.scan(step, start, length=8)", "lax.scan(step, start, length=7)"),
    fault(("cotangent ignored", "missing term"), ("q", "p", "stiffness"), "start = (q, p, *bars,",
          "start = (q, p, bars[0], 0.0 * bars[1],"),
    fault(("permutation", "wrong operand"), ("q", "p", "stiffness"), "start = (q, p, *bars,",
          "start = (q, p, bars[1], bars[0],"),
    fault(("dtype", "structure"), "stiffness", "return q_bar, p_bar, stiffness_bar",
          "return q_bar, p_bar, stiffness_bar.astype(jnp.bfloat16)"),
)


@jax.custom_vjp
def heat_step(u, diffusivity):
    """One implicit step of the heat equation, (I + κ L) v = u, ends held at zero."""
    return jnp.linalg.solve(heat_matrix(u.shape[0], diffusivity), u)


def heat_matrix(size, diffusivity):
    """I + κ L, L the second difference."""
    laplacian = 2.0 * jnp.eye(size) - jnp.eye(size, k=1) - jnp.eye(size, k=-1)
    return jnp.eye(size) + diffusivity * laplacian


def heat_step_fwd(u, diffusivity):
    """Keep the solution and κ."""
    v = heat_step(u, diffusivity)
    return v, (v, diffusivity)


def heat_step_bwd(residuals, v_bar):
    """The matrix is symmetric: ū solves the same system;  κ̄ = −ūᵀ L v."""
    v, diffusivity = residuals
    u_bar = jnp.linalg.solve(heat_matrix(v.shape[0], diffusivity), v_bar)
    padded = jnp.pad(v, 1)
    laplacian_v = 2.0 * v - padded[2:] - padded[:-2]
    return u_bar, -jnp.vdot(u_bar, laplacian_v)


heat_step.defvjp(heat_step_fwd, heat_step_bwd)

HEAT_STEP = operation(
    heat_step,
    lambda rng: (normal(rng, 7), np.float32(0.4)),
    fault("sign", "diffusivity", "-jnp.vdot(u_bar", "jnp.vdot(u_bar"),
    fault("wrong operand", "diffusivity", "jnp.vdot(u_bar, laplacian_v)",
          "jnp.vdot(v_bar, laplacian_v)"),
    fault(("border", "missing term", "wrong operand"), "diffusivity", "jnp.pad(v, 1)",
          'jnp.pad(v, 1, mode="edge")'),
    fault(("wrong function", "wrong operand"), ("u", "diffusivity"),
          "jnp.linalg.solve(heat_matrix(v.shape[0], diffusivity), v_bar)",
          "heat_matrix(v.shape[0], diffusivity) @ v_bar"),
    fault(("off by one", "missing term"), "diffusivity", "padded[2:] - padded[:-2]",
          "padded[2:] - padded[1:-1]"),
    fault("wrong constant", "diffusivity", "2.0 * v - padded", "v - padded"),
)


@jax.custom_vjp
def rotation(axis_angle):
    """Rodrigues' formula: the rotation matrix of a rotation vector."""
    angle = jnp.sqrt(jnp.sum(axis_angle**2))
    k = cross_matrix(axis_angle / angle)
    return jnp.eye(3, dtype=k.dtype) + jnp.sin(angle) * k + (1.0 - jnp.cos(angle)) * (k @ k)


def cross_matrix(v):
    """The matrix of v ×."""
    zero = jnp.zeros_like(v[0])
    return jnp.array([[zero, -v[2], v[1]], [v[2], zero, -v[0]], [-v[1], v[0], zero]])


def rotation_fwd(axis_angle):
    """Keep the rotation vector."""
    return rotation(axis_angle), axis_angle


def rotation_bwd(axis_angle, matrix_bar):
    """Through sin, cos, k and k², and through the unit vector to the rotation vector."""
    angle = jnp.sqrt(jnp.sum(axis_angle**2))
    unit = axis_angle / angle
    k = cross_matrix(unit)
    angle_bar = jnp.sum(matrix_bar * (jnp.cos(angle) * k + jnp.sin(angle) * (k @ k)))
    squared_bar = (1.0 - jnp.cos(angle)) * matrix_bar
    k_bar = jnp.sin(angle) * matrix_bar + squared_bar @ k.T + k.T @ squared_bar
    skew = k_bar - k_bar.T
    unit_bar = jnp.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    return (unit * angle_bar + (unit_bar - unit * jnp.sum(unit * unit_bar)) / angle,)


rotation.defvjp(rotation_fwd, rotation_bwd)

ROTATION = operation(
    rotation,
    lambda rng: (normal(rng, 3),),
    fault("missing term", "axis_angle", " + k.T @ squared_bar\n", "\n"),
    fault("transpose", "axis_angle", "squared_bar @ k.T +", "squared_bar @ k +"),
    fault("sign", "axis_angle", "jnp.cos(angle) * k + jnp.sin", "jnp.cos(angle) * k - jnp.sin"),
    fault("wrong function", "axis_angle", "jnp.sum(matrix_bar * (jnp.cos(angle) * k",
          "jnp.sum(matrix_bar * (jnp.sin(angle) * k"),
    fault(("sign", "entries", "reversal", "permutation"), "axis_angle",
          "[skew[2, 1], skew[0, 2], skew[1, 0]]", "[skew[2, 1], skew[2, 0], skew[1, 0]]"),
    fault("missing factor", "axis_angle", " / angle,)", ",)"),
    fault("missing term", "axis_angle", "(unit_bar - unit * jnp.sum(unit * unit_bar))", "unit_bar"),
    also={"small angle": lambda rng: (normal(rng, 3, scale=1e-3),)},
)
