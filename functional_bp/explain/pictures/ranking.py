"""The layers of a layout: every wire forwards, all of them together as short as can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

Edge = tuple[int, int]


def back_edges(count: int, edges: Sequence[Edge]) -> set[int]:
    """The edges to turn round so that there is no cycle."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    has_input = [False] * count
    for i, (u, v) in enumerate(edges):
        out[u].append((i, v))
        has_input[v] = True
    state = [0] * count  # 1: on the way, 2: done
    back: set[int] = set()
    for root in sorted(range(count), key=lambda node: has_input[node]):
        if state[root]:
            continue
        state[root] = 1
        stack = [(root, iter(out[root]))]
        while stack:
            node, rest = stack[-1]
            for i, following in rest:
                if state[following] == 1:
                    back.add(i)
                elif state[following] == 0:
                    state[following] = 1
                    stack.append((following, iter(out[following])))
                    break
            else:
                state[node] = 2
                stack.pop()
    return back


def ranks(count: int, edges: Sequence[Edge], step: int) -> list[int]:
    """The layer of each node, from 0; every edge spans at least ``step`` layers.

    Derivation:

        minimize Σ (rank of head − rank of tail)  subject to  rank of head − rank of tail ≥ step

        is a linear program whose matrix is totally unimodular, so that its corners are whole
        numbers. Of equally short layouts the one farther to the left is taken.
    """
    longest = _longest_path(count, edges, step)
    if not edges:
        return longest
    units = [rank // step for rank in longest]
    cost = np.zeros(count)
    for u, v in edges:
        cost[v] += 1
        cost[u] -= 1
    little = 1 / (4 * count * (max(units) + 1))
    cost += little * (1 + np.arange(count) / count)
    rows = np.repeat(np.arange(len(edges)), 2)
    columns = np.asarray(edges).reshape(-1)
    matrix = sparse.csr_array((np.tile([1.0, -1.0], len(edges)), (rows, columns)))
    matrix.resize((len(edges), count))
    found = linprog(cost, A_ub=matrix, b_ub=-np.ones(len(edges)), method="highs")
    if found.status == 0:
        units = [round(rank) for rank in found.x]
    if any(units[v] <= units[u] for u, v in edges):  # stopped early, or rounded wrongly
        return longest
    return [step * (unit - min(units)) for unit in units]


def _longest_path(count: int, edges: Sequence[Edge], step: int) -> list[int]:
    out: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for u, v in edges:
        out[u].append(v)
        waiting[v] += 1
    order = [node for node in range(count) if not waiting[node]]
    rank = [0] * count
    for node in order:
        for following in out[node]:
            rank[following] = max(rank[following], rank[node] + step)
            waiting[following] -= 1
            if not waiting[following]:
                order.append(following)
    return rank
