"""Lines of Unicode mathematics are put into LaTeX: formula lines of docstrings, names, numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Mapping

from functional_bp.tables.table import OVERLINE

MACRON = "\u0304"
NUMBERED = re.compile(r"([^\W\d_])_?(\d+)")  # a letter with a number: W1, h_2
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "pi",
}  # fmt: skip
FUNCTIONS = {
    "exp": r"\exp", "ln": r"\ln", "sin": r"\sin", "cos": r"\cos", "tan": r"\tan", "sinh": r"\sinh",
    "cosh": r"\cosh", "tanh": r"\tanh", "arcsin": r"\arcsin", "arccos": r"\arccos",
    "arctan": r"\arctan", "max": r"\max", "min": r"\min", "σ": r"\sigma", "ψ": r"\psi",
    "ln Γ": r"\ln\Gamma", "log₂": r"\log_{2}", "erf⁻¹": r"\mathrm{erf}^{-1}",
    "Re": r"\mathrm{Re}", "Im": r"\mathrm{Im}",
}  # fmt: skip
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           "<": r"\textless{}", ">": r"\textgreater{}",
           **{c: "\\" + c for c in "&%$#_{}"}}  # fmt: skip
SYMBOLS = {
    "·": r"\cdot ", "−": "-", "×": r"\times ", "∘": r"\circ ", "Σ": r"\sum ", "Π": r"\prod ",
    "∂": r"\partial ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "⇒": r"\Rightarrow ",
    "→": r"\to ", "↦": r"\mapsto ", "←": r"\leftarrow ", "√": r"\sqrt", "∞": r"\infty ",
    "½": r"\tfrac{1}{2}", "⅓": r"\tfrac{1}{3}", "±": r"\pm ", "…": r"\dots ", "′": "'",
    "⟨": r"\langle ", "⟩": r"\rangle ", "‖": r"\| ", "∈": r"\in ", "∫": r"\int ", "≪": r"\ll ",
    "≈": r"\approx ", "π": r"\pi ", "ι": r"\iota ", "τ": r"\tau ", "σ": r"\sigma ", "Φ": r"\Phi ",
    "ψ": r"\psi ", "Γ": r"\Gamma ", "ζ": r"\zeta ", "ε": r"\varepsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "Ω": r"\Omega ", "ω": r"\omega ", "Δ": r"\Delta ", "γ": r"\gamma ",
    "β": r"\beta ", "α": r"\alpha ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "∛": r"\sqrt[3]",
    "–": "-", "μ": r"\mu ", "ρ": r"\rho ", "δ": r"\delta ", "η": r"\eta ", "κ": r"\kappa ",
    "φ": r"\phi ", "χ": r"\chi ", "ν": r"\nu ", "ξ": r"\xi ", "’": "'", "⊙": r"\odot ",
    "¬": r"\lnot ", "∇": r"\nabla ",
    **{c: "\\" + c for c in "&%$#{}"},
}  # fmt: skip
_SUB = {c: unicodedata.normalize("NFKD", c) for c in "₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓₐₑₕ"}
_SUPER = {c: unicodedata.normalize("NFKD", c) for c in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣʸᵀᴴᵈᵉˢᵗᵏᵐᵃᵇᶜ"}
_SUPER |= {"⁻": "-", "ᵀ": r"\top ", "ᴴ": r"\mathsf{H}", "*": "*"}


ACCENTS = {MACRON: "bar", "\u0307": "dot", "\u0302": "hat", "\u0303": "tilde"}
_WORDS = r"(?<![A-Za-z_^{])[A-Za-z]{2,}(?:[ ](?:a )?[A-Za-z]{2,}|['-][A-Za-z]+)*(?![\u0300-\u036f])"


def decomposed(text: str, accents: Container[str] = (MACRON,)) -> str:
    """Make every macron a character of its own, whether or not Unicode has the letter with it."""
    apart = ((c, unicodedata.normalize("NFD", c)) for c in text)
    return "".join(parts if parts[1:] in accents else c for c, parts in apart)


def escaped(text: str) -> str:
    """Escape LaTeX's own characters in plain text, and put mathematical ones into formulas."""
    mathematics = rf"(?:\w{OVERLINE})+|[^\x00-\x7f]+"
    pieces = re.split(f"({mathematics})", unicodedata.normalize("NFC", text))
    return "".join(
        _plain(piece) if piece.isascii() else f"${transliterated(piece).strip()}$"
        for piece in pieces
    )


def latex_name(text: str, bar: bool = False) -> str:
    r"""Return a variable's name: ``W1`` is W_{1}, ``loss`` upright, ``alpha`` \alpha.

    >>> print(latex_name("W1"), latex_name("h", bar=True), latex_name("loss", bar=True))
    W_{1} \bar{h} \overline{\mathrm{loss}}
    >>> print(latex_name("params['W']"))
    \mathrm{params['W']}
    """
    found = NUMBERED.fullmatch(text)
    base, index = (found[1], found[2]) if found else (text, "")
    if base in GREEK:
        shown, accent = "\\" + base, "bar"
    elif len(base) == 1:
        shown, accent = (base if base.isascii() else transliterated(base).strip()), "bar"
        shown = "\\" + shown if shown in "&%$#_{}" else shown
    else:
        shown, accent = rf"\mathrm{{{_plain(base)}}}", "overline"
    shown = rf"\{accent}{{{shown}}}" if bar else shown
    return f"{shown}_{{{index}}}" if index else shown


def _plain(text: str, special: Mapping[str, str] = SPECIAL) -> str:
    return "".join(special.get(c, c) if c.isascii() else transliterated(c) for c in text)


def typed(text: str) -> str:
    """Put a piece of Python into typewriter letters, each space kept."""
    return _plain(text, {**SPECIAL, " ": r"\ "})


def transliterated(text: str) -> str:
    """Put a line of Unicode mathematics into LaTeX; words in it are text."""
    apart = decomposed(text, ACCENTS)
    pieces = re.split(rf"(``[^`]*``|(?:\w{OVERLINE})+|{_WORDS})", apart)
    made = []
    for k, piece in enumerate(pieces):
        if OVERLINE in piece:
            made.append(latex_name(piece.replace(OVERLINE, ""), bar=True))
        elif piece.startswith("``"):
            made.append(rf"\mathtt{{{typed(piece.strip('`'))}}}")
        elif re.match(r"[A-Za-z]{2}", piece):
            before, after = pieces[k - 1][-1:], pieces[k + 1][:1]
            made.append(_words(piece, " " * (before == " "), " " * (after == " ")))
        else:
            made.append(_mathematics(piece))
    return "".join(made)


def _words(words: str, before: str, after: str) -> str:
    if "\\" + words in FUNCTIONS.values():
        return f"\\{words} "
    if not before and not after:
        return rf"\mathrm{{{words}}}"
    return rf"\text{{{before}{words}{after}}}"


_PIECES = re.compile(
    rf".(?P<accent>[{''.join(ACCENTS)}])|(?P<below>[{''.join(_SUB)}]+)"
    rf"|(?P<above>(?!\*)[{''.join(_SUPER)}]+)"
    r"|_(?P<index>\{[^}]*\}|[A-Za-z0-9]+(?:\([A-Za-z]\))?)?"
    r"|\^(?P<exponent>\([^)]*\)|[A-Za-z0-9−]+)?|√(?P<radicand>\([^)]*\)|\w+)?|.",
    re.DOTALL,
)
ALONE = {"_": r"\_", "^": r"\wedge ", "√": r"\sqrt{}"}  # with nothing that they belong to


def _mathematics(text: str) -> str:
    return _PIECES.sub(_piece, text)


def _piece(found: re.Match[str]) -> str:
    text = found[0]
    match found.lastgroup:
        case "accent":
            return rf"\{ACCENTS[text[1]]}{{{SYMBOLS.get(text[0], text[0]).strip()}}}"
        case "below":
            return f"_{{{''.join(_SUB[c] for c in text).strip()}}}"
        case "above":
            return f"^{{{''.join(_SUPER[c] for c in text).strip()}}}"
        case "index":
            return f"_{{{_mathematics(found['index'].strip('{}'))}}}"
        case "exponent":
            return f"^{{{_mathematics(found['exponent'])}}}"
        case "radicand":
            return rf"\sqrt{{{_mathematics(found['radicand'].strip('()'))}}}"
    return ALONE.get(text) or SYMBOLS.get(text, text)
