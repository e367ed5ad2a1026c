"""Names of primitives in tables: each is one that a supported JAX has.

A name that JAX gives up would switch off what looks for it, without a sound.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import jax.lax.linalg  # noqa: F401  (makes its primitives)
import pytest
from jax.extend.core import Primitive

import functional_bp as bp

TABLES = {
    "explanation.pictures.contents": ["CARRIERS"],
    "explanation.pictures.symbols": ["SIGNS", "COMMUTATIVE"],
    "explanation.scopes": ["SLICES"],
    "gradcheck.evaluation": ["ANALYTIC", "REAL_PART", "BILINEAR", "HOLDING", "_CONTINUED"],
    "gradcheck.diagnosis.localize": ["CHOICES", "BATCHED"],
    "gradcheck.diagnosis.repair.dropped": ["OPAQUE", "ENTERED"],
    "gradcheck.diagnosis.repair.locations": ["VIEWS", "COMPARING"],
    "gradcheck.diagnosis.repair.mutations.entrywise": ["COMPARISONS", "SPECIAL"],
    "gradcheck.diagnosis.repair.mutations.arrangement": ["INDEXED"],
    "gradcheck.diagnosis.repair.mutations.insertions": ["VIEWS", "MIXING"],
    "gradcheck.diagnosis.repair.program": ["TABLE", "_STRUCTURES", "_BODIES"],
    "gradcheck.diagnosis.repair.search": ["LAYING_OUT"],
    "gradcheck.diagnosis.repair.source": ["SPELLINGS"],
    "gradcheck.input_classes": ["COPYING", "ORDERING"],
    "gradcheck.stages.inputs": ["BETWEEN", "AT_ZERO"],
    "graph.flops": ["MOVES", "_SPECIAL"],
    "memory.residual_costs": ["FUSED"],
    "graph.interpret": ["COMPARING", "ORDERING"],
    "graph.nested": ["_COMBINING", "_READERS", "CALLS", "WITH_OWN_RULE"],
}
NEWER = {"one_minus_square", "reduced_vary_cast"}  # than the oldest supported JAX


def names_of_jax() -> set[str]:
    """Those of the oldest supported JAX, by its census, and of this one."""
    census = json.loads((Path(__file__).parents[1] / "data" / "primitives.json").read_text())
    every = [*map(str, census), *(str(entry.get("name")) for entry in _entries(census))]
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "jax"]
    made = [p.name for m in modules for p in vars(m).values() if isinstance(p, Primitive)]
    return {*every, *made, *(p.name for p in bp.rules), *NEWER}


def _entries(census: object) -> list[dict[str, object]]:
    lists = census.values() if isinstance(census, dict) else [census]
    return [e for one in lists if isinstance(one, list) for e in one if isinstance(e, dict)]


@pytest.mark.parametrize("module", TABLES)
def test_every_name_is_a_primitive_of_jax(module: str) -> None:
    home = importlib.import_module(f"functional_bp.{module}")
    unknown = {
        f"{table}: {name}"
        for table in TABLES[module]
        for name in getattr(home, table)
        if name not in names_of_jax()
    }
    assert not unknown


def test_a_dead_name_is_seen() -> None:
    assert not {"pjit", "remat", "core_call", "copy_p", "expand_dims"} & names_of_jax()
