"""The gallery of rules: each with formula, residuals, conventions, derivation, improvements."""
