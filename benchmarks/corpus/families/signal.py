"""Cumulative operations and Fourier transforms."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import complex_normal, fault, normal, operation, uniform


@jax.custom_vjp
def running_sum(x):
    """Cumulative sum along the first axis."""
    return jnp.cumsum(x, axis=0)


def running_sum_fwd(x):
    """Linear: nothing is kept."""
    return jnp.cumsum(x, axis=0), None


def running_sum_bwd(_, y_bar):
    """The cumulative sum from the end."""
    return (jnp.cumsum(y_bar[::-1], axis=0)[::-1],)


running_sum.defvjp(running_sum_fwd, running_sum_bwd)

RUNNING_SUM = operation(
    running_sum,
    lambda rng: (normal(rng, 5, 5),),
    fault(("reversal", "wrong function"), "x", "jnp.cumsum(y_bar[::-1], axis=0)[::-1]",
          "jnp.cumsum(y_bar, axis=0)"),
    fault("reversal", "x", "jnp.cumsum(y_bar[::-1], axis=0)[::-1]",
          "jnp.cumsum(y_bar[::-1], axis=0)"),
    fault("axis", "x", "jnp.cumsum(y_bar[::-1], axis=0)[::-1]",
          "jnp.cumsum(y_bar[:, ::-1], axis=1)[:, ::-1]"),
    fault(("off by one", "missing term"), "x", "(jnp.cumsum(y_bar[::-1], axis=0)[::-1],)",
          "(jnp.cumsum(y_bar[::-1], axis=0)[::-1] - y_bar,)"),
    fault(("missing sum", "missing term"), "x", "(jnp.cumsum(y_bar[::-1], axis=0)[::-1],)",
          "(y_bar,)"),
    fault("vmap", "x", "(jnp.cumsum(y_bar[::-1], axis=0)[::-1],)",
          "(jax.pure_callback(  # NumPy's axis 0 is the batch under vmap\n"
          "        lambda t: np.cumsum(t[::-1], axis=0)[::-1], y_bar, y_bar,\n"
          '        vmap_method="broadcast_all",\n'
          "    ),)"),
    also={"long": lambda rng: (normal(rng, 100000, 1),)},
)


@jax.custom_vjp
def running_product(x):
    """Cumulative product of a vector without zeros."""
    return jnp.cumprod(x)


def running_product_fwd(x):
    """Keep x and the products."""
    y = jnp.cumprod(x)
    return y, (x, y)


def running_product_bwd(residuals, y_bar):
    """x̄_i = Σ_{j ≥ i} ȳ_j y_j / x_i."""
    x, y = residuals
    tail = jnp.cumsum((y * y_bar)[::-1])[::-1]
    return (tail / x,)


running_product.defvjp(running_product_fwd, running_product_bwd)

RUNNING_PRODUCT = operation(
    running_product,
    lambda rng: (uniform(rng, 0.5, 1.5, 7),),
    fault(("reversal", "wrong function"), "x", "jnp.cumsum((y * y_bar)[::-1])[::-1]",
          "jnp.cumsum(y * y_bar)"),
    fault("missing factor", "x", "(tail / x,)", "(tail,)"),
    fault(("missing factor", "wrong operand"), "x", "(y * y_bar)[::-1]", "y_bar[::-1]"),
    fault(("wrong operand", "missing factor"), "x", "(tail / x,)", "(tail / y,)"),
    fault("off by one", "x", "(tail / x,)", "(jnp.roll(tail, -1) / x,)"),
    fault(("region", "wrong function"), "x", "(tail / x,)", "(tail / jnp.abs(x),)",
          elsewhere=lambda rng: (-uniform(rng, 0.5, 1.5, 7),)),
)


@jax.custom_vjp
def running_logsumexp(x):
    """log Σ_{j ≤ i} exp(x_j)."""
    return lax.cumlogsumexp(x)


def running_logsumexp_fwd(x):
    """Keep x and the output."""
    y = lax.cumlogsumexp(x)
    return y, (x, y)


def running_logsumexp_bwd(residuals, y_bar):
    """x̄_j = Σ_{i ≥ j} ȳ_i exp(x_j − y_i): a scan, so that no exponent is positive."""
    x, y = residuals

    def step(carry_bar, inputs):
        x_j, y_j, y_before, y_bar_j = inputs
        here_bar = y_bar_j + carry_bar
        return here_bar * jnp.exp(y_before - y_j), here_bar * jnp.exp(x_j - y_j)

    before = jnp.concatenate([jnp.full_like(y[:1], -jnp.inf), y[:-1]])
    return (lax.scan(step, jnp.zeros_like(y[0]), (x, y, before, y_bar), reverse=True)[1],)


running_logsumexp.defvjp(running_logsumexp_fwd, running_logsumexp_bwd)

RUNNING_LOGSUMEXP = operation(
    running_logsumexp,
    lambda rng: (normal(rng, 7),),
    fault("overflow", "x", "    x, y = residuals\n",
          "    x, y = residuals\n    if x.ndim == 1:\n"
          "        tail = jnp.cumsum((y_bar * jnp.exp(-y))[::-1])[::-1]\n"
          "        return (jnp.exp(x) * tail,)\n",
          elsewhere=lambda rng: (800.0 + normal(rng, 7),)),
    fault(("missing term", "wrong operand"), "x", "here_bar * jnp.exp(x_j - y_j)",
          "y_bar_j * jnp.exp(x_j - y_j)"),
    fault("missing factor", "x", "return here_bar * jnp.exp(y_before - y_j),", "return here_bar,"),
    fault("reversal", "x", "y_bar), reverse=True)", "y_bar))"),
    fault(("off by one", "wrong operand"), "x", "(x, y, before, y_bar)",
          "(x, y, jnp.roll(y, -1), y_bar)"),
    fault(("sign", "wrong operand"), "x", "jnp.exp(x_j - y_j)", "jnp.exp(y_j - x_j)"),
    also={"steep": lambda rng: (np.linspace(-500, 500, 12, dtype=np.float32),)},
)


@jax.custom_vjp
def power_spectrum(x):
    """|FFT of a real signal|², half of the frequencies."""
    return jnp.abs(jnp.fft.rfft(x)) ** 2


def power_spectrum_fwd(x):
    """Keep the transform, and x for its length."""
    f = jnp.fft.rfft(x)
    return jnp.real(f * jnp.conj(f)), (f, x)


def power_spectrum_bwd(residuals, y_bar):
    """x̄ = 2 Re Σ_k ȳ_k f_k e^{2πi kt/n}: an inverse transform with zeros for the other half."""
    f, x = residuals
    size = x.shape[0]
    full = jnp.zeros(size, f.dtype).at[: f.shape[0]].set(2.0 * y_bar * f)
    return (size * jnp.real(jnp.fft.ifft(full)),)


power_spectrum.defvjp(power_spectrum_fwd, power_spectrum_bwd)

POWER_SPECTRUM = operation(
    power_spectrum,
    lambda rng: (normal(rng, 8),),
    fault(("factor", "mean or sum"), "x", "(size * jnp.real", "(jnp.real"),
    fault("factor", "x", "set(2.0 * y_bar * f)", "set(y_bar * f)"),
    fault(("reversal", "wrong function"), "x", "jnp.fft.ifft(full)",
          "jnp.fft.ifft(jnp.conj(full))"),
    fault(("entries", "factor", "other", "missing factor"), "x",
          "size * jnp.real(jnp.fft.ifft(full))", "size * jnp.fft.irfft(2.0 * y_bar * f, n=size)"),
    fault("wrong function", "x", "size * jnp.real(jnp.fft.ifft(full))",
          "size * jnp.imag(jnp.fft.ifft(full))"),
    fault(("wrong operand", "wrong function", "missing factor"), "x", "set(2.0 * y_bar * f)",
          "set(2.0 * y_bar * jnp.abs(f))"),
    fault("precision", "x", "set(2.0 * y_bar * f)", "set(2.0 * y_bar * f.astype(jnp.complex64))"),
)


@jax.custom_vjp
def circular_convolution(x, kernel):
    """Convolution on a ring, by the Fourier transform."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(kernel), n=x.shape[0])


def circular_convolution_fwd(x, kernel):
    """Keep both transforms."""
    x_f, kernel_f = jnp.fft.rfft(x), jnp.fft.rfft(kernel)
    return jnp.fft.irfft(x_f * kernel_f, n=x.shape[0]), (x_f, kernel_f)


def circular_convolution_bwd(residuals, y_bar):
    """Correlations with ȳ: multiply by the conjugates."""
    x_f, kernel_f = residuals
    y_bar_f = jnp.fft.rfft(y_bar)
    x_bar = jnp.fft.irfft(y_bar_f * jnp.conj(kernel_f), n=y_bar.shape[0])
    kernel_bar = jnp.fft.irfft(y_bar_f * jnp.conj(x_f), n=y_bar.shape[0])
    return x_bar, kernel_bar


circular_convolution.defvjp(circular_convolution_fwd, circular_convolution_bwd)

CIRCULAR_CONVOLUTION = operation(
    circular_convolution,
    lambda rng: (normal(rng, 8), normal(rng, 8)),
    fault(("reversal", "wrong function"), "x", "jnp.conj(kernel_f)", "kernel_f"),
    fault(("reversal", "wrong function"), "kernel", "y_bar_f * jnp.conj(x_f)",
          "jnp.conj(y_bar_f) * x_f"),
    fault("wrong operand", "kernel", "jnp.conj(x_f)", "jnp.conj(kernel_f)"),
    fault("factor", "x", "return x_bar, kernel_bar", "return x_bar / x_bar.shape[0], kernel_bar"),
    fault(("off by one", "permutation"), "x", "return x_bar, kernel_bar",
          "return jnp.roll(x_bar, 1), kernel_bar"),
)


@jax.custom_vjp
def modulate(z, w):
    """z w̄ for complex signals: multiply by the conjugate."""
    return z * jnp.conj(w)


def modulate_fwd(z, w):
    """Keep both."""
    return z * jnp.conj(w), (z, w)


def modulate_bwd(residuals, y_bar):
    """JAX pairs without conjugation: z̄ = ȳ w̄;  w̄ = conj(ȳ z)."""
    z, w = residuals
    z_bar = y_bar * jnp.conj(w)
    w_bar = jnp.conj(y_bar * z)
    return z_bar, w_bar


modulate.defvjp(modulate_fwd, modulate_bwd)

MODULATE = operation(
    modulate,
    lambda rng: (complex_normal(rng, 6), complex_normal(rng, 6)),
    fault(("wrong function", "wrong operand"), "z", "y_bar * jnp.conj(w)", "y_bar * w"),
    fault(("wrong function", "sign"), "w", "jnp.conj(y_bar * z)", "y_bar * z"),
    fault(("missing factor", "wrong operand"), "w", "jnp.conj(y_bar * z)", "jnp.conj(z)"),
    fault(("wrong function", "wrong operand", "sign"), "w", "jnp.conj(y_bar * z)",
          "jnp.conj(y_bar) * z"),
)


@jax.custom_vjp
def modulus(z):
    """|z| of complex numbers."""
    return jnp.sqrt(jnp.real(z) ** 2 + jnp.imag(z) ** 2)


def modulus_fwd(z):
    """Keep z and its modulus."""
    y = jnp.sqrt(jnp.real(z) ** 2 + jnp.imag(z) ** 2)
    return y, (z, y)


def modulus_bwd(residuals, y_bar):
    """ȳ conj(z)/|z|, in JAX's convention."""
    z, y = residuals
    return (y_bar * jnp.conj(z) / y,)


modulus.defvjp(modulus_fwd, modulus_bwd)

MODULUS = operation(
    modulus,
    lambda rng: (complex_normal(rng, 6),),
    fault(("wrong function", "sign"), "z", "jnp.conj(z) / y", "z / y"),
    fault("missing factor", "z", "jnp.conj(z) / y", "jnp.conj(z)"),
    fault(("missing term", "wrong function"), "z", "y_bar * jnp.conj(z) / y",
          "(y_bar * jnp.real(z) / y).astype(z.dtype)"),
    fault(("sign", "wrong function"), "z", "(y_bar * jnp.conj(z) / y,)", "(-y_bar * z / y,)"),
)
