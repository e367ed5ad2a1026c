"""Matrix factorizations and functions of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import definite, fault, normal, operation


@jax.custom_vjp
def cholesky_factor(a):
    """The lower triangular l with l lᵀ = a, read from the symmetric part of a."""
    return jnp.linalg.cholesky((a + a.T) / 2.0)


def cholesky_factor_fwd(a):
    """Keep the factor."""
    factor = jnp.linalg.cholesky((a + a.T) / 2.0)
    return factor, factor


def cholesky_factor_bwd(factor, factor_bar):
    """ā = ½ l⁻ᵀ (Φ + Φᵀ) l⁻¹, Φ the lower half of lᵀ l̄, its diagonal halved."""
    product = jnp.tril(factor.T @ factor_bar)
    half = product - 0.5 * jnp.diag(jnp.diag(product))
    inner = jax.scipy.linalg.solve_triangular(factor, half + half.T, trans=1, lower=True)
    a_bar = jax.scipy.linalg.solve_triangular(factor, inner.T, trans=1, lower=True)
    return (0.5 * a_bar,)


cholesky_factor.defvjp(cholesky_factor_fwd, cholesky_factor_bwd)

CHOLESKY_FACTOR = operation(
    cholesky_factor,
    lambda rng: (definite(rng, 4),),
    fault(("missing term", "factor", "entries"), "a", "product - 0.5 * jnp.diag(jnp.diag(product))",
          "product"),
    fault("factor", "a", "(0.5 * a_bar,)", "(a_bar,)"),
    fault("transpose", "a", "jnp.tril(factor.T @ factor_bar)", "jnp.tril(factor @ factor_bar)"),
    fault(("missing term", "transpose"), "a", "half + half.T", "half + half"),
    fault(("wrong function", "extra term", "missing term"), "a", "jnp.tril(factor.T @ factor_bar)",
          "factor.T @ factor_bar"),
    fault(("transpose", "wrong operand"), "a", "inner.T, trans=1", "inner.T, trans=0"),
    fault(("transpose", "entries", "missing term"), "a", "jnp.tril(factor.T @",
          "jnp.triu(factor.T @"),
    also={"ill conditioned": lambda rng: (
        definite(rng, 4) * np.outer(*[10.0 ** np.arange(0, -8, -2)] * 2).astype(np.float32),)},
)


@jax.custom_vjp
def eigenvalues(a):
    """Eigenvalues of the symmetric part of a, ascending."""
    return jnp.linalg.eigvalsh((a + a.T) / 2.0)


def eigenvalues_fwd(a):
    """Keep the eigenvectors."""
    values, vectors = jnp.linalg.eigh((a + a.T) / 2.0)
    return values, vectors


def eigenvalues_bwd(vectors, values_bar):
    """ā = v diag(λ̄) vᵀ."""
    return ((vectors * values_bar) @ vectors.T,)


eigenvalues.defvjp(eigenvalues_fwd, eigenvalues_bwd)

EIGENVALUES = operation(
    eigenvalues,
    lambda rng: (definite(rng, 4),),
    fault("transpose", "a", "((vectors * values_bar) @ vectors.T,)",
          "((vectors.T * values_bar) @ vectors,)"),
    fault(("axis", "transpose"), "a", "vectors * values_bar", "vectors * values_bar[:, None]"),
    fault(("reversal", "permutation", "wrong operand"), "a", "return values, vectors",
          "return values, vectors[:, ::-1]"),
    fault(("missing term", "entries", "missing factor"), "a",
          "((vectors * values_bar) @ vectors.T,)",
          "(jnp.diag(jnp.diag((vectors * values_bar) @ vectors.T)),)"),
    fault("extra term", "a", "(vectors * values_bar) @ vectors.T",
          "(vectors * (values_bar + 0.1)) @ vectors.T"),
)


@jax.custom_vjp
def eigen_decomposition(a):
    """Eigenvalues and the projector on the lowest two eigenvectors, of the symmetric part of a."""
    values, vectors = jnp.linalg.eigh((a + a.T) / 2.0)
    return values, vectors[:, :2] @ vectors[:, :2].T


def eigen_decomposition_fwd(a):
    """Keep the decomposition."""
    values, vectors = jnp.linalg.eigh((a + a.T) / 2.0)
    return (values, vectors[:, :2] @ vectors[:, :2].T), (values, vectors)


def eigen_decomposition_bwd(residuals, bars):
    """P̄ acts between the lowest two and the others, divided by the gap λ_i − λ_j."""
    values, vectors = residuals
    values_bar, projector_bar = bars
    symmetric = (projector_bar + projector_bar.T) / 2.0
    between = vectors[:, :2].T @ symmetric @ vectors[:, 2:]
    mixing = between / (values[:2, None] - values[None, 2:])
    mixed = vectors[:, :2] @ mixing @ vectors[:, 2:].T
    a_bar = (vectors * values_bar) @ vectors.T + mixed + mixed.T
    return (a_bar,)


eigen_decomposition.defvjp(eigen_decomposition_fwd, eigen_decomposition_bwd)

EIGEN_DECOMPOSITION = operation(
    eigen_decomposition,
    lambda rng: (definite(rng, 4) + np.diag([0.0, 1.0, 3.0, 5.0]).astype(np.float32),),
    fault("sign", "a", "values[:2, None] - values[None, 2:]",
          "values[None, 2:] - values[:2, None]"),
    fault("cotangent ignored", "a", "(vectors * values_bar) @ vectors.T + mixed", "mixed"),
    fault(("cotangent ignored", "missing term"), "a", " + mixed + mixed.T", ""),
    fault("missing term", "a", "+ mixed + mixed.T", "+ mixed"),
    fault(("factor", "missing factor"), "a", "(projector_bar + projector_bar.T) / 2.0",
          "projector_bar + projector_bar.T"),
    fault(("missing factor", "wrong function"), "a", "between / (values", "between * (values"),
    fault(("missing term", "transpose", "entries"), "a", "(projector_bar + projector_bar.T) / 2.0",
          "projector_bar"),
)


@jax.custom_vjp
def nuclear_norm(a):
    """The sum of the singular values."""
    return jnp.sum(jnp.linalg.svd(a, compute_uv=False))


def nuclear_norm_fwd(a):
    """Keep the singular vectors."""
    u, s, vh = jnp.linalg.svd(a, full_matrices=False)
    return jnp.sum(s), (u, vh)


def nuclear_norm_bwd(residuals, y_bar):
    """ā = ȳ u vᵀ."""
    u, vh = residuals
    return (y_bar * (u @ vh),)


nuclear_norm.defvjp(nuclear_norm_fwd, nuclear_norm_bwd)

NUCLEAR_NORM = operation(
    nuclear_norm,
    lambda rng: (normal(rng, 4, 4),),
    fault("transpose", "a", "(u @ vh)", "(u @ vh).T"),
    fault("transpose", "a", "(u @ vh)", "(u @ vh.T)"),
    fault(("wrong operand", "missing factor"), "a", "jnp.sum(s), (u, vh)",
          "jnp.sum(s), (u * s, vh)"),
    fault(("not linear", "sign"), "a", "(y_bar * (u @ vh),)", "(jnp.abs(y_bar) * (u @ vh),)"),
)


@jax.custom_vjp
def matrix_square(a):
    """a a, for a square matrix."""
    return a @ a


def matrix_square_fwd(a):
    """Keep a."""
    return a @ a, a


def matrix_square_bwd(a, y_bar):
    """ā = ȳ aᵀ + aᵀ ȳ."""
    return (y_bar @ a.T + a.T @ y_bar,)


matrix_square.defvjp(matrix_square_fwd, matrix_square_bwd)

MATRIX_SQUARE = operation(
    matrix_square,
    lambda rng: (normal(rng, 4, 4),),
    fault(("missing term", "wrong operand"), "a", "y_bar @ a.T + a.T @ y_bar", "2.0 * y_bar @ a.T"),
    fault("missing term", "a", "y_bar @ a.T + a.T @ y_bar", "y_bar @ a.T"),
    fault("transpose", "a", "y_bar @ a.T + a.T @ y_bar", "y_bar @ a.T + a @ y_bar"),
    fault("transpose", "a", "+ a.T @ y_bar", "+ (a.T @ y_bar).T"),
    fault(("factor", "precision"), "a", "(y_bar @ a.T + a.T", "((1.0 + 1e-5) * y_bar @ a.T + a.T"),
    fault("second order", "a", "y_bar @ a.T + a.T", "y_bar @ lax.stop_gradient(a).T + a.T",
          order=2),
)
