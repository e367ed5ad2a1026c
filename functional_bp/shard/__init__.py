"""A loss that does not fit one device is trained on several, in one process or in many.

A name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.layouts.batch_law import BatchLaw as BatchLaw
    from functional_bp.layouts.batch_law import Law as Law
    from functional_bp.layouts.batch_law import batch_law as batch_law
    from functional_bp.layouts.dimensions import Dimension as Dimension
    from functional_bp.layouts.dimensions import Dimensions as Dimensions
    from functional_bp.layouts.dimensions import dimensions as dimensions
    from functional_bp.layouts.layout import Layout as Layout
    from functional_bp.layouts.layout import LayoutError as LayoutError
    from functional_bp.layouts.layout import layout as layout
    from functional_bp.shard.launch import Connection as Connection
    from functional_bp.shard.launch import connect as connect
    from functional_bp.shard.layout_search import NothingFitsError as NothingFitsError
    from functional_bp.shard.layout_search import PlanError as PlanError
    from functional_bp.shard.layout_search import Roofline as Roofline
    from functional_bp.shard.planner import TrainingPlan as TrainingPlan
    from functional_bp.shard.planner import plan as plan

_HOMES = {
    "functional_bp.layouts.batch_law": ("BatchLaw", "Law", "batch_law"),
    "functional_bp.layouts.dimensions": ("Dimension", "Dimensions", "dimensions"),
    "functional_bp.layouts.layout": ("Layout", "LayoutError", "layout"),
    "functional_bp.shard.launch": ("Connection", "connect"),
    "functional_bp.shard.planner": ("TrainingPlan", "plan"),
    "functional_bp.shard.layout_search": ("NothingFitsError", "PlanError", "Roofline"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
