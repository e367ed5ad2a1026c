"""The discrete Fourier transform has four kinds; the adjoint of each is one of them, weighted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax import lax

from functional_bp import _jax
from functional_bp.engine.axes import relate
from functional_bp.engine.rule import case, cplx, linear, real


def _fft(x: Any, kind: Any, lengths: tuple[int, ...]) -> Any:
    return fft_p.bind(x, fft_type=kind, fft_lengths=lengths)


def _multiplicity(like: Any, n: int) -> Any:
    """Count how often entry k of a half spectrum stands in the whole: 1 for k = 0, n/2; else 2."""
    k = lax.broadcasted_iota(np.int32, like.shape, like.ndim - 1)
    once = lax.bitwise_or(lax.eq(k, np.int32(0)), lax.eq(lax.mul(k, np.int32(2)), np.int32(n)))
    return lax.select(once, lax.full_like(like, 1), lax.full_like(like, 2))


def fourier(y_bar, *, fft_type, fft_lengths):
    """x̄ = F ȳ, and for a half spectrum the transform of the other kind, weighted.

    Derivation:
        FFT, IFFT. y = F x with the symmetric matrix F_kj = ω^kj, so x̄ = Fᵀ ȳ = F ȳ.

        RFFT. y_k = Σ_j ω^kj x_j, x real, only k = 0 … ⌊n/2⌋ (on the last axis). The pairing is
        ⟨ȳ, ẏ⟩ = Re Σ_k ȳ_k ẏ_k, thus

            x̄_j = Re Σ_k ȳ_k ω^kj

        IRFFT(z)_j = (1/N) Re Σ_k c_k z_k ω^−kj, where c_k counts how often an entry stands in
        the whole spectrum: 1 at k = 0 and k = n/2, else 2. With z = ȳ*/c it is the same sum:

            x̄ = N · IRFFT(ȳ* / c)

        IRFFT. By the same two lines read backwards, z̄_k = (c_k/N) Σ_j ȳ_j ω^−kj, that is

            z̄ = (c/N) RFFT(ȳ)*

        N is the product of the lengths; on the other axes the matrix is F or F⁻¹ itself.

    Source: derived above.
    """
    if fft_type == lax.FftType.RFFT:
        weighted = lax.div(lax.conj(y_bar), _multiplicity(y_bar, fft_lengths[-1]))
        back = _fft(weighted, lax.FftType.IRFFT, fft_lengths)
        return lax.mul(back, lax.full_like(back, math.prod(fft_lengths)))
    if fft_type == lax.FftType.IRFFT:
        spectrum = lax.conj(_fft(y_bar, lax.FftType.RFFT, fft_lengths))
        scale = lax.full_like(spectrum, 1 / math.prod(fft_lengths))
        return lax.mul(spectrum, lax.mul(scale, _multiplicity(spectrum, fft_lengths[-1])))
    return _fft(y_bar, fft_type, fft_lengths)


def _kind(kind: str, *lengths: int) -> Any:
    return lambda x: lax.fft(x, kind, lengths)


def transformed_axes(x_t: Any, y_t: Any, *, fft_lengths: tuple[int, ...]) -> Any:
    """The last axes are transformed; of a real transform the very last has another size."""
    batch = len(x_t.shape) - len(fft_lengths)
    labels = [i if m == n else None for i, (m, n) in enumerate(zip(x_t.shape, y_t.shape))]
    return relate([labels], [labels], mixed=labels[batch:])


fft_p: Any = _jax.find_primitive("lax.fft.fft_p")
linear(
    fft_p, "x -> y", x=fourier, axes=transformed_axes,
    cases=[
        case(_kind("FFT", 5), cplx(2, 5), half=False, note="half precision: JAX has no FFT of it"),
        case(_kind("IFFT", 3, 4), cplx(2, 3, 4), half=False),
        case(_kind("RFFT", 4), real(2, 4), half=False),
        case(_kind("RFFT", 3, 5), real(3, 5), half=False),
        case(_kind("RFFT", 2, 3, 4), real(2, 3, 4), half=False),
        case(_kind("RFFT", 1), real(2, 1), half=False),
        case(_kind("IRFFT", 4), cplx(2, 3), half=False),
        case(_kind("IRFFT", 5), cplx(3), half=False),
        case(_kind("IRFFT", 3, 4), cplx(2, 3, 3), half=False),
        case(_kind("FFT", 4), cplx(0, 4), half=False),
    ],
)
