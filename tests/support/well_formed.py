"""Whether TeX would read a formula: braces, delimiters and characters."""

from __future__ import annotations


def check_latex(text: str) -> None:
    """Braces and \\left…\\right balance; no character that TeX would refuse in mathematics."""
    depth = 0
    plain = text.replace(r"\{", "").replace(r"\}", "").replace("\\\\", "")
    for c in plain:
        depth += (c == "{") - (c == "}")
        assert depth >= 0, text
    assert depth == 0, text
    assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right") - text.count(
        r"\rightarrow"
    ), text
    assert text.isascii(), text
    outside = plain.replace(r"\_", "").replace(r"\#", "").replace(r"\$", "").replace(r"\%", "")
    assert not set(outside) & set("#$%"), text
    assert "__" not in outside and "^^" not in outside and "_^" not in outside, text
