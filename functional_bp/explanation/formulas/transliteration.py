"""Lines of Unicode mathematics are put into LaTeX: formula lines of docstrings, names, numbers."""

from __future__ import annotations

import re
import unicodedata

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


def _apart(c: str) -> str:
    """A letter and its accent, where it has one."""
    parts = unicodedata.normalize("NFD", c)
    return parts if parts[1:] in ACCENTS else c


def escaped(text: str) -> str:
    """Escape LaTeX's own characters in plain text, and put mathematical ones into formulas."""
    pieces = []
    over = rf"(?:\w{OVERLINE})+"
    for piece in re.split(rf"({over}|[^\x00-\x7f]+)", unicodedata.normalize("NFC", text)):
        if piece.isascii():
            pieces.append("".join(SPECIAL.get(c, c) for c in piece))
        else:
            pieces.append(f"${transliterated(piece).strip()}$")
    return "".join(pieces)


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
        plain = "".join(SPECIAL.get(c, c) if c.isascii() else c for c in base)
        shown, accent = rf"\mathrm{{{_upright(plain)}}}", "overline"
    shown = rf"\{accent}{{{shown}}}" if bar else shown
    return f"{shown}_{{{index}}}" if index else shown


def _upright(text: str) -> str:
    return "".join(c if c.isascii() else transliterated(c) for c in text)


def typed(text: str) -> str:
    """Put a piece of Python into typewriter letters, each space kept."""
    special = {**SPECIAL, " ": r"\ "}
    return "".join(special.get(c, c) if c.isascii() else transliterated(c) for c in text)


def transliterated(text: str) -> str:
    """Put a line of Unicode mathematics into LaTeX; words in it are text."""
    normal = "".join(_apart(c) for c in text)
    pieces = re.split(rf"(``[^`]*``|(?:\w{OVERLINE})+|{_WORDS})", normal)
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


def _mathematics(text: str) -> str:
    out: list[str] = []
    k = 0
    while k < len(text):
        c = text[k]
        mark = text[k + 1] if k + 1 < len(text) else ""
        if mark in ACCENTS:
            out.append(rf"\{ACCENTS[mark]}{{{SYMBOLS.get(c, c).strip()}}}")
            k += 2
            continue
        for table, sign in ((_SUB, "_"), (_SUPER, "^")):
            if c in table and c != "*":
                end = k
                while end < len(text) and text[end] in table:
                    end += 1
                out.append(f"{sign}{{{''.join(table[x] for x in text[k:end]).strip()}}}")
                k = end
                break
        else:
            k += 1
            if c == "_":
                found = re.match(r"(\{[^}]*\}|[A-Za-z0-9]+(?:\([A-Za-z]\))?)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(f"_{{{_mathematics(body.strip('{}'))}}}" if body else r"\_")
            elif c == "^":
                found = re.match(r"(\([^)]*\)|[A-Za-z0-9−]+)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(f"^{{{_mathematics(body)}}}" if body else r"\wedge ")
            elif c == "√":
                found = re.match(r"(\([^)]*\)|\w+)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(rf"\sqrt{{{_mathematics(body.strip('()'))}}}")
            else:
                out.append(SYMBOLS.get(c, c))
    return "".join(out)
