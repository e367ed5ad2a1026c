"""A report is written as JSON, with everything in it, and read back.

Numbers that JSON does not have are texts ("nan", "inf", "-inf") or, where they are complex,
``{"real": …, "imag": …}``. Arrays are ``{"dtype": …, "shape": […], "values": […]}``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from enum import EnumType
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from functional_bp.errors import BackpropError
from functional_bp.gradcheck.findings import CheckResult

VERSION = 1
Result = TypeVar("Result", bound=CheckResult)


class ReportError(BackpropError, ValueError):
    """A text is not the JSON of one report."""


def render(reports: Sequence[CheckResult]) -> str:
    """Write one report as an object; several as ``{"reports": […]}``."""
    every = [{"version": VERSION, **_encode(report)} for report in reports]
    data = every[0] if len(every) == 1 else {"version": VERSION, "reports": every}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(text: str, kind: type[Result]) -> Result:
    """Read the one report that ``render`` wrote, as a ``kind`` of result.

    Raises:
        ReportError: the text is no report, or one of another version.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("version") != VERSION or "verdict" not in data:
        got = data.get("version", "no version") if isinstance(data, dict) else type(data).__name__
        raise ReportError(
            "this is not the JSON of one report",
            got=f"version {got}" if isinstance(got, int) else str(got),
            expected=f'an object with "version": {VERSION} and a "verdict"',
            do="write it with report.to_json()",
        )
    return _decode(kind, {key: value for key, value in data.items() if key != "version"})


def _encode(value: Any) -> Any:
    """Dataclasses, arrays and numbers as JSON has them; fields that equality ignores stay out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        every = [field for field in dataclasses.fields(value) if field.compare]
        return {field.name: _encode(getattr(value, field.name)) for field in every}
    if isinstance(value, np.ndarray):
        flat = [_encode(entry.item()) for entry in value.ravel()]
        return {"dtype": str(value.dtype), "shape": list(value.shape), "values": flat}
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, Mapping):
        return {str(key): _encode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(entry) for entry in value]
    if isinstance(value, complex):
        return {"real": _encode(value.real), "imag": _encode(value.imag)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(kind: Any, value: Any) -> Any:
    """Of a type, what ``_encode`` made ``value`` of."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return cast(Any, kind)(
            **{name: _decode(hints[name], entry) for name, entry in value.items()}
        )
    if isinstance(kind, EnumType):
        return kind(value)
    if kind is np.ndarray:
        import ml_dtypes  # names bfloat16 to NumPy; JAX brings it

        dtype = np.dtype(getattr(ml_dtypes, value["dtype"], value["dtype"]))
        return np.array(list(map(_number, value["values"])), dtype=dtype).reshape(value["shape"])
    if kind in (float, Any):
        return _number(value)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(_decode(inside[0], entry) for entry in value)
    if origin is Mapping:
        return {name: _decode(inside[1], entry) for name, entry in value.items()}
    if origin is UnionType:  # with None
        return None if value is None else _decode(inside[0], value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return complex(_number(value["real"]), _number(value["imag"]))
    return float(value) if isinstance(value, str) else value
