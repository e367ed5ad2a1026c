"""Many arguments of one closed scope, drawn as one: a block's parameters beside the block."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from functional_bp.explain.numbers import format_number, summarize
from functional_bp.explain.pictures.contents import Contents, Node, Use
from functional_bp.explain.pictures.typeset import Run, typeset_paths
from functional_bp.graph.parts import Variable

MOST_APART = 3  # arguments that a closed scope has for itself and that are drawn one by one
_STEP = re.compile(r"\[[^\]]*\]|\.\w+|^\w+")


@dataclass(frozen=True, eq=False)
class Bundle(Variable):
    """Several arguments that are drawn as one."""

    members: tuple[Variable, ...] = ()


def bundled(shown: Contents) -> Contents:
    """The same with many parts of one argument that only one closed scope uses drawn as one."""
    own: dict[tuple[Node, str], list[Variable]] = defaultdict(list)
    ends = {output.variable for output in shown.outputs}
    for variable, uses in shown.uses.items():
        leaf = shown.maker[variable].kind == "leaf"
        if leaf and variable not in ends and len(uses) == 1 and uses[0].head.kind == "closed":
            own[uses[0].head, re.split(r"\W", variable.name)[0]].append(variable)
    nodes, maker, uses = [*shown.nodes], {**shown.maker}, {**shown.uses}
    for (head, _), members in own.items():
        if len(members) <= MOST_APART:
            continue
        prefix = _common(members)
        bundle = Bundle(prefix, None, "input", members=tuple(members))
        (line,) = typeset_paths({prefix: True}).values()
        leaf = Node("leaf", (*line, Run(f" ({len(members)})")), (), bundle)
        first = min(uses[member][0].place for member in members)
        nodes[nodes.index(maker[members[0]])] = leaf
        for member in members:
            nodes = [node for node in nodes if node is not maker[member]]
            del maker[member], uses[member]
        maker[bundle] = leaf
        uses[bundle] = [Use(bundle, head, None, first)]
    return replace(shown, nodes=nodes, maker=maker, uses=uses)


def norm_of(arrays: list[Any]) -> str:
    """The norm of several arrays together, as it is shown of one; "" where there is none."""
    norms = [summarize(array).norm for array in arrays if _is_number(array)]
    return f"‖·‖ = {format_number(np.hypot.reduce(norms))}" if norms else ""


def _is_number(array: Any) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "V") in "fc" or hasattr(array, "real")


def _common(members: list[Variable]) -> str:
    """The path that all of them begin with: ``params['blocks'][0]``."""
    steps = [_STEP.findall(member.name) for member in members]
    return "".join(os.path.commonprefix(steps))
