"""Colours that tell kinds apart, on light and on dark pages."""

# Hues of equal weight, told apart by readers who see colours differently (after Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a100")
