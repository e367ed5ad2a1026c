"""The costs of explanations: one table, each section in order of likelihood."""

import ast
import inspect
from itertools import pairwise

from functional_bp.gradcheck.diagnosis import costs


def sections() -> list[list[str]]:
    """The names of each section, in order."""
    lines = inspect.getsource(costs).splitlines()
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("# "):
            found.append([])
        elif " = " in line and found:
            found[-1].append(line.partition(" = ")[0])
    return found


def test_each_section_is_in_order_of_likelihood() -> None:
    named = sections()
    assert sum(map(len, named)) == sum(map(str.isupper, vars(costs)))
    for names in named:
        for likelier, other in pairwise(names):
            assert getattr(costs, likelier) <= getattr(costs, other), (likelier, other)


def test_no_cost_is_named_twice() -> None:
    targets = [n.targets[0] for n in ast.parse(inspect.getsource(costs)).body
               if isinstance(n, ast.Assign)]  # fmt: skip
    names = [ast.unparse(target) for target in targets]
    assert len(names) == len(set(names))
