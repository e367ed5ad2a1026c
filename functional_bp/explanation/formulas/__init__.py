"""A rule as mathematics: its pullback's source, read into an expression and written down.

``reading`` turns the source of a pullback into the tree of ``expression``, which also says which
functions of ``jax.lax`` are operators. ``writing`` writes the tree, in Unicode or in LaTeX. Where a
pullback is a program rather than a formula, ``formula`` takes the formula line of its docstring,
and ``transliteration`` puts that into LaTeX.
"""
