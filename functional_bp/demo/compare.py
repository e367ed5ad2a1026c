"""How far two gradients are apart, parameter by parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

# Both sum the same products in another order: a rounding error of 6e-8 at each of some hundred
# additions, most of which cancel, stays well below this.
RELATIVE_TOLERANCE = 1e-5


class Difference(NamedTuple):
    """One parameter's gradient against a witness of it.

    Attributes:
        name: the parameter's path.
        shape: of parameter and gradient.
        norm: ‖ours‖, the Euclidean norm over all entries.
        largest: max |ours − witness|.
        relative: ‖ours − witness‖ / ‖witness‖.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    largest: float
    relative: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by rounding alone (not a number never agrees)."""
        return self.relative <= RELATIVE_TOLERANCE


def compare(ours: Any, witness: Any) -> list[Difference]:
    """One row per array of the pytree ``ours``; ``witness`` has the same structure."""
    rows = []
    others = jax.tree.leaves(witness)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(ours), others, strict=True):
        a, b = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        apart, norm = np.linalg.norm(a - b), np.linalg.norm(b)
        rows.append(
            Difference(
                name=jax.tree_util.keystr(path, simple=True, separator="."),
                shape=a.shape,
                norm=float(np.linalg.norm(a)),
                largest=float(np.max(np.abs(a - b), initial=0.0)),
                relative=float(apart / norm if norm else apart),
            )
        )
    return rows
