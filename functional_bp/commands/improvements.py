"""``functional-bp rules --improvements``: where our gradients are not JAX's, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.rules.improvements import Improvement


def list_improvements(part: str, as_json: bool) -> int:
    """Print the improvements with ``part`` in their names; 1 if one has not the true value."""
    import jax

    from functional_bp import rules as _registered  # noqa: F401  (their import fills the list)
    from functional_bp.rules.improvements import improvements

    chosen = [entry for entry in improvements if part in entry.name]
    if not chosen:
        print(f"functional-bp rules: no improvement's name contains {part!r}", file=sys.stderr)
        return 2
    facts = []
    with jax.enable_x64(True):
        for entry in chosen:
            ours, is_true = _our_gradient(entry)
            facts.append(
                {
                    "name": entry.name,
                    "at": ", ".join(map(_value, entry.at)),
                    "dtype": entry.dtype,
                    "jax": entry.jax,
                    "ours": ours,
                    "true": _value(entry.true),
                    "agrees": is_true,
                    "source": entry.source,
                }
            )
    wrong = [entry["name"] for entry in facts if not entry["agrees"]]
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(_improvement_text, facts)))
        print(f"\n{len(facts)} improvements, {len(facts) - len(wrong)} with the true value")
    if wrong:
        print(f"functional-bp rules: not the true value: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _improvement_text(facts: Mapping[str, Any]) -> str:
    """One improvement in a few lines."""
    rows = [
        ("at", f"{facts['at']} ({facts['dtype']})"),
        ("JAX", facts["jax"]),
        ("ours", facts["ours"] + ("" if facts["agrees"] else "   NOT THE TRUE VALUE")),
        ("true", f"{facts['true']}   {facts['source']}"),
    ]
    return "\n".join([facts["name"], *(f"  {label:<6}{text}" for label, text in rows)])


def _our_gradient(entry: Improvement) -> tuple[str, bool]:
    """Our gradient as text, and whether it is the true one, to the stated tolerance."""
    import jax.numpy as jnp
    import numpy as np

    from functional_bp.transforms import grad

    arrays = [np.asarray(x) for x in entry.at]
    dtypes = {"f": entry.dtype, "c": "complex128" if entry.dtype == "float64" else "complex64"}
    args = [jnp.asarray(x, dtypes.get(x.dtype.kind, x.dtype)) for x in arrays]
    try:
        got = np.asarray(entry.gradient(grad)(*args))
    except Exception as error:  # whatever goes wrong is what the table is there to tell
        return f"raises {type(error).__name__}", False
    got = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    want = np.asarray(entry.true)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    agrees = np.allclose(got, want, rtol=entry.rtol, atol=entry.rtol * scale, equal_nan=True)
    return _value(got), bool(agrees)


def _value(value: Any) -> str:
    """A number or a small array on one line, to six digits."""
    import numpy as np

    array = np.asarray(value)
    text = np.array2string(array, precision=6, separator=", ", threshold=6, edgeitems=2)
    return " ".join(text.split()) if array.ndim else f"{array.item():.6g}"
