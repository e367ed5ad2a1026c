"""A number is written here as a person would write it: 3, 1/6, 0.044715, √(2/π), 1/N."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple


class Numeral(NamedTuple):
    """A number has a name and a text in Python; ``simple`` is less for a likelier one."""

    value: float
    name: str
    text: str
    simple: int


def _table(sizes: Iterable[int]) -> list[Numeral]:
    rows = [
        Numeral(math.sqrt(2 / math.pi), "√(2/π)", "jnp.sqrt(2 / jnp.pi)", 2),
        Numeral(1 / math.sqrt(2 * math.pi), "1/√(2π)", "1 / jnp.sqrt(2 * jnp.pi)", 2),
        Numeral(2 / math.sqrt(math.pi), "2/√π", "2 / jnp.sqrt(jnp.pi)", 2),
        Numeral(math.sqrt(2 * math.pi), "√(2π)", "jnp.sqrt(2 * jnp.pi)", 2),
        Numeral(math.log(2), "ln 2", "jnp.log(2)", 2),
        Numeral(1 / math.log(2), "1/ln 2", "1 / jnp.log(2)", 3),
        Numeral(math.log(10), "ln 10", "jnp.log(10)", 3),
        Numeral(math.e, "e", "jnp.e", 3),
        *(
            Numeral(math.pi * float(f), *_times(f, "π", "jnp.pi"), 2)
            for f in map(Fraction, ("1", "2", "1/2", "1/3", "1/4", "4", "4/3"))
        ),
        *(Numeral(1 / (math.pi * k), f"1/{k}π", f"1 / ({k} * jnp.pi)", 3) for k in (1, 2)),
    ]
    rows += [Numeral(math.sqrt(k), f"√{k}", f"jnp.sqrt({k})", 3) for k in (2, 3, 5)]
    rows += [Numeral(math.sqrt(1 / k), f"1/√{k}", f"1 / jnp.sqrt({k})", 3) for k in (2, 3, 5)]
    for n in dict.fromkeys(sizes):
        if n > 2:
            rows += [
                Numeral(n, f"N = {n}", f"{n}", 1),
                Numeral(1 / n, f"1/N, N = {n}", f"1 / {n}", 1),
                Numeral(math.sqrt(n), f"√N, N = {n}", f"jnp.sqrt({n})", 2),
                Numeral(1 / math.sqrt(n), f"1/√N, N = {n}", f"1 / jnp.sqrt({n})", 2),
                Numeral(n - 1, f"N − 1, N = {n}", f"{n - 1}", 3),
                Numeral(1 / (n - 1), f"1/(N − 1), N = {n}", f"1 / {n - 1}", 3),
                Numeral(n / (n - 1), f"N/(N − 1), N = {n}", f"{n} / {n - 1}", 3),
                Numeral((n - 1) / n, f"(N − 1)/N, N = {n}", f"{n - 1} / {n}", 3),
                Numeral(2 / n, f"2/N, N = {n}", f"2 / {n}", 3),
                Numeral(n / 2, f"N/2, N = {n}", f"{n} / 2", 3),
                Numeral(n * n, f"N², N = {n}", f"{n * n}", 4),
                Numeral(1 / (n * n), f"1/N², N = {n}", f"1 / {n * n}", 4),
            ]
    return rows


def _times(fraction: Fraction, name: str, text: str) -> tuple[str, str]:
    top, bottom = fraction.numerator, fraction.denominator
    over, under = ("" if top == 1 else f"{top}"), ("" if bottom == 1 else f"/{bottom}")
    return f"{over}{name}{under}", (f"{top} * " if over else "") + text + (
        f" / {bottom}" if under else ""
    )


def named(value: float, sizes: Iterable[int] = (), tolerance: float = 1e-6) -> Numeral | None:
    """A number is this constant, to a relative tolerance; None if it is none."""
    if not math.isfinite(value) or abs(value) > 1e9:
        return None
    if abs(value) < 1e-9:
        return Numeral(0.0, "0", "0", 0)
    sign, size = ("−", -1.0) if value < 0 else ("", 1.0), abs(value)

    def near(candidate: float) -> bool:
        return abs(candidate - size) <= tolerance * size

    def signed(found: Numeral, more: int = 0) -> Numeral:
        minus = "-" if value < 0 else ""
        body = f"({found.text})" if minus and " " in found.text else found.text
        return Numeral(
            sign[1] * found.value, sign[0] + found.name, minus + body, found.simple + more
        )

    for small in (1, 2, 0.5):
        if near(small):
            return signed(Numeral(small, f"{small:g}" if small != 0.5 else "½", f"{small:g}", 0))
    matches = [row for row in _table(sizes) if near(row.value)]
    fraction = Fraction(size).limit_denominator(24)
    if near(float(fraction)) and fraction.numerator <= 1000:
        small = fraction.numerator == 1 or max(fraction.numerator, fraction.denominator) <= 4
        text = str(fraction).replace("/", " / ")
        matches.append(Numeral(float(fraction), str(fraction), text, 1 if small else 4))
    if matches:
        return signed(min(matches, key=lambda row: row.simple))
    rounded = float(f"{size:.6g}")
    digits = len(f"{rounded:.6g}".replace(".", "").strip("0"))
    if digits <= 5 and near(rounded):
        return signed(Numeral(rounded, f"{rounded:g}", f"{rounded:g}", 2))
    squared = Fraction(size * size).limit_denominator(24)
    if abs(float(squared) - size * size) <= 2 * tolerance * size * size and squared < 1000:
        root = f"√({squared})"
        return signed(Numeral(math.sqrt(squared), root, f"jnp.sqrt({squared})", 4))
    return None


def shown(value: float) -> str:
    """A number without a name is shown to six digits."""
    return f"{value:.6g}"
