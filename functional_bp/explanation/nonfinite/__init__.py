"""The first NaN or infinity of a function and its gradient: which equation, which entries, why.

``origins`` goes through the forward sweep, then the reverse sweep, and into loops step by step; it
tells the equation that makes a NaN from those that pass it on, and looks at a rule in the same way
as at a function. ``causes`` finds which entries of the operands are to blame, and says why.
"""

from functional_bp.explanation.nonfinite.causes import FirstNonfinite as FirstNonfinite
from functional_bp.explanation.nonfinite.causes import Inside as Inside
from functional_bp.explanation.nonfinite.origins import first_nonfinite as first_nonfinite
