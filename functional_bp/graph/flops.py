"""An operation's floating-point operations are estimated, from its shapes alone.

========================  ====================================================================
operation                 flops
========================  ====================================================================
elementwise               1 per element of the output, transcendental or not, integer or not
moves of data             0 (reshape, transpose, slice, gather, pad, convert, copy, …)
``dot_general``           2 · batch · m · n · k
convolution               2 · output size · (kernel size / output channels); padding counts
reductions, cumulative    1 per element of the input
window reductions         output size · window size
scatter with arithmetic   1 per element of the updates
``sort``, ``top_k``       input size · log₂ of the sorted length
``fft``                   5 · n · log₂ n per transform of n points, half of it if one side is real
factorizations            the leading term in m and n of the textbook algorithm, per matrix
collectives               reductions 1 per element, the rest 0
anything else             1 per element of the output
========================  ====================================================================

A complex multiply and add is eight real operations, so complex contractions count four times.
These are costs of the mathematics. A compiler may fuse, skip padding, or choose another algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import JaxprEqn

MOVES = frozenset(
    """all_gather all_gather_invariant all_gather_reduced all_to_all axis_index
    bitcast_convert_type broadcast_in_dim complex concatenate convert_element_type copy
    create_token debug_callback debug_print device_put dynamic_slice dynamic_update_slice empty
    empty2 gather get imag iota name optimization_barrier pad pbroadcast ppermute pvary
    ragged_all_to_all random_unwrap random_wrap real reduced_vary_cast reshape reshard rev
    scatter sharding_constraint slice split squeeze stop_gradient swap tile transpose"""
    .split()
)  # fmt: skip


def flops_of(eqn: JaxprEqn) -> int:
    """Estimate the floating-point operations of one equation that holds no graph of its own.

    Args:
        eqn: the equation; only its primitive's name, shapes and parameters are read.
    """
    name = eqn.primitive.name
    if name in MOVES:
        return 0
    if name in _SPECIAL:
        return int(_SPECIAL[name](eqn))
    if name.startswith(("reduce_window", "select_and_scatter", "select_and_gather")):
        window = math.prod(eqn.params.get("window_dimensions", (1,)))
        small = eqn.invars[0] if name == "select_and_scatter_add" else eqn.outvars[0]
        return _size(small) * window
    if name.startswith(("reduce_precision", "reduce_scatter")):
        return _size(eqn.invars[0])
    if name.startswith(("reduce", "cum", "arg", "psum", "pmax", "pmin")):
        return sum(map(_size, eqn.invars)) if name != "reduce" else _size(eqn.invars[0])
    if name.startswith("scatter"):
        return _size(eqn.invars[2])
    return max((_size(v) for v in eqn.outvars), default=0)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _size(atom: Any) -> int:
    return math.prod(_shape(atom)) if hasattr(atom.aval, "shape") else 0


def _is_complex(atom: Any) -> bool:
    return atom.aval.dtype.kind == "c"


def _complexity(eqn: JaxprEqn) -> int:
    return 4 if _is_complex(eqn.outvars[0]) else 1


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    k = math.prod(_shape(eqn.invars[0])[i] for i in contracted)
    return 2 * _size(eqn.outvars[0]) * k * _complexity(eqn)


def _ragged_dot(eqn: JaxprEqn) -> int:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), (batch, _) = numbers.dot_dimension_numbers
    lhs, rhs = _shape(eqn.invars[0]), eqn.invars[1]
    groups = math.prod(_shape(rhs)[i] for i in numbers.rhs_group_dimensions) or 1
    shared = math.prod(lhs[i] for i in (*contracted, *batch))
    return 2 * math.prod(lhs) * (_size(rhs) // (groups * shared or 1)) * _complexity(eqn)


def _conv(eqn: JaxprEqn) -> int:
    kernel = _shape(eqn.invars[1])
    channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]] or 1
    return 2 * _size(eqn.outvars[0]) * (math.prod(kernel) // channels) * _complexity(eqn)


def _sort(eqn: JaxprEqn) -> int:
    axis = eqn.params.get("dimension", eqn.params.get("axis", -1))  # of sort, and of top_k
    length = _shape(eqn.invars[0])[axis]
    return _size(eqn.invars[0]) * max(1, math.ceil(math.log2(max(length, 2))))


def _fft(eqn: JaxprEqn) -> float:
    points = math.prod(eqn.params["fft_lengths"]) or 1
    sides = (eqn.invars[0], eqn.outvars[0])
    real = [side for side in sides if not _is_complex(side)]
    size = _size(real[0]) if real else _size(sides[0])
    return 5 * size * math.log2(max(points, 2)) / (2 if real else 1)


def _matrices(leading: Callable[[int, int], float]) -> Callable[[JaxprEqn], float]:
    """Per matrix [..., m, n] of the first operand, ``leading(m, n)``."""

    def count(eqn: JaxprEqn) -> float:
        *batch, m, n = _shape(eqn.invars[0])
        return math.prod(batch) * leading(m, n) * _complexity(eqn)

    return count


def _thin(m: int, n: int) -> float:
    """Elimination of an m × n matrix: mn·min − (m+n)·min²/2 + min³/3 multiply-adds."""
    k = min(m, n)
    return m * n * k - (m + n) * k**2 / 2 + k**3 / 3


_SPECIAL: dict[str, Callable[[JaxprEqn], float]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "sort": _sort,
    "top_k": _sort,
    "approx_top_k": _sort,
    "fft": _fft,
    "cholesky": _matrices(lambda m, n: n**3 / 3),
    "lu": _matrices(lambda m, n: 2 * _thin(m, n)),
    "qr": _matrices(lambda m, n: 4 * _thin(m, n)),
    "geqrf": _matrices(lambda m, n: 4 * _thin(m, n)),
    "geqp3": _matrices(lambda m, n: 4 * _thin(m, n)),
    "householder_product": _matrices(lambda m, n: 4 * _thin(m, n)),
    "eigh": _matrices(lambda m, n: 9 * n**3),
    "eig": _matrices(lambda m, n: 25 * n**3),
    "schur": _matrices(lambda m, n: 25 * n**3),
    "hessenberg": _matrices(lambda m, n: 10 * n**3 / 3),
    "tridiagonal": _matrices(lambda m, n: 4 * n**3 / 3),
    "svd": _matrices(lambda m, n: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3),
    "triangular_solve": lambda eqn: (
        _size(eqn.outvars[0]) * _shape(eqn.invars[0])[-1] * _complexity(eqn)
    ),
    "tridiagonal_solve": lambda eqn: 8 * _size(eqn.outvars[0]),
}


def dot_subscripts(eqn: JaxprEqn) -> str:
    """Write the contraction of a ``dot_general`` as an einsum would: ``ab,bc→ac``."""
    (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    lhs_rank, rhs_rank = (len(_shape(v)) for v in eqn.invars[:2])
    letters = iter("abcdefghijklmnopqrstuvwxyz" * (1 + (lhs_rank + rhs_rank) // 26))
    lhs = [next(letters) for _ in range(lhs_rank)]
    rhs = [""] * rhs_rank
    for left, right in [*zip(lhs_batch, rhs_batch), *zip(lhs_contracted, rhs_contracted)]:
        rhs[right] = lhs[left]
    free = [i for i in range(rhs_rank) if not rhs[i]]
    for i in free:
        rhs[i] = next(letters)
    out = [lhs[i] for i in lhs_batch]
    out += [lhs[i] for i in range(lhs_rank) if i not in (*lhs_batch, *lhs_contracted)]
    out += [rhs[i] for i in free]
    return f"{''.join(lhs)},{''.join(rhs)}→{''.join(out)}"
