"""The tree of scopes: every operator once, views that join, large scopes divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp
from functional_bp.explanation.pictures.contents import Contents, Node, Returned, contents
from functional_bp.explanation.scopes import MOST_ITEMS, Scope, Stub, View, scopes, views


def block(w, x):
    with jax.named_scope("attention"):
        h = jnp.tanh(x @ w) * x
    with jax.named_scope("mlp"):
        return x + jnp.sin(h @ w) * 2


def tower(w, x):
    for i in range(3):
        with jax.named_scope(f"block_{i}"):
            x = block(w, x)
    return jnp.sum(x**2)


def chain(x):
    for _ in range(200):
        x = jnp.sin(x) + 0.1
    return jnp.sum(x)


def residual(x):
    return x + jnp.sin(jnp.cos(x) * x) * jnp.tanh(x)


def called(x):
    for _ in range(40):
        x = residual(x)
    return jnp.sum(x)


def seen(fun, *args) -> tuple[Contents, Scope, dict[Scope, View]]:
    shown = contents(bp.explain(fun, *args))
    root = scopes(shown)
    return shown, root, views(root, shown)


ARGUMENTS = {
    tower: (np.full((2, 2), 0.5), np.ones((3, 2))),
    chain: (np.ones(3),),
    called: (np.ones(3),),
}
every = pytest.mark.parametrize("fun", ARGUMENTS, ids=lambda fun: fun.__name__)


@every
def test_each_operator_stands_in_one_scope(fun):
    shown, root, _ = seen(fun, *ARGUMENTS[fun])
    held = [node for scope in root.walk() for node in scope.items if isinstance(node, Node)]
    assert len(held) == len(set(held))
    assert set(held) == {node for node in shown.nodes if node.kind == "operator"}


@every
def test_no_scope_is_larger_than_can_be_looked_at(fun):
    _, root, _ = seen(fun, *ARGUMENTS[fun])
    assert max(len(scope.items) for scope in root.walk()) <= MOST_ITEMS


@every
def test_paths_are_unique_and_follow_the_tree(fun):
    _, root, _ = seen(fun, *ARGUMENTS[fun])
    paths = [scope.path for scope in root.walk()]
    assert len(paths) == len(set(paths))
    for scope in root.walk():
        if scope.parent is not None:
            assert scope.parent in scope.chain and scope in scope.parent.items


@every
def test_every_use_is_drawn_where_its_ends_meet(fun):
    shown, root, found = seen(fun, *ARGUMENTS[fun])
    for variable, uses in shown.uses.items():
        for use in uses:
            reached = [
                view
                for view in found.values()
                for (_, head), passing in view.wires.items()
                if head is use.head and variable in passing
            ]
            assert len(reached) == 1, f"{variable} arrives at {use.head} in {len(reached)} views"


@every
def test_wires_join_what_the_view_shows(fun):
    _, _, found = seen(fun, *ARGUMENTS[fun])
    for view in found.values():
        known = set(view.ends)
        assert all(tail in known and head in known for tail, head in view.wires)
        assert len(view.ends) == len(known)
        for tail, head in view.wires:
            assert not (isinstance(tail, Stub) and tail.side == "out")
            assert not (isinstance(head, Stub) and head.side == "in")


def test_the_scopes_are_the_persons():
    _, root, _ = seen(tower, *ARGUMENTS[tower])
    names = [scope.path for scope in root.walk()]
    wanted = ["", "block_0", "block_0/attention", "block_0/mlp", "block_1"]
    assert names[:5] == wanted


def test_a_shared_weight_is_drawn_once():
    _, root, found = seen(tower, *ARGUMENTS[tower])
    leaves = [e for view in found.values() for e in view.ends if getattr(e, "kind", "") == "leaf"]
    assert [e.variable.name for e in leaves].count("w") == 1
    (at_top,) = [e for e in found[root].ends if getattr(e, "kind", "") == "leaf" and
                 e.variable.name == "w"]  # fmt: skip
    heads = [head for tail, head in found[root].wires if tail is at_top]
    assert {head.name for head in heads} == {"block_0", "block_1", "block_2"}


def test_what_comes_from_outside_is_a_stub_at_the_border():
    _, root, found = seen(tower, *ARGUMENTS[tower])
    inner = next(scope for scope in root.walk() if scope.path == "block_1")
    stubs = [end for end in found[inner].ends if isinstance(end, Stub)]
    came = {(stub.side, getattr(stub.elsewhere, "name", "")) for stub in stubs}
    assert ("in", "block_0") in came and ("out", "block_2") in came


def test_a_loop_is_divided_by_the_functions_that_it_calls():
    _, root, _ = seen(called, *ARGUMENTS[called])
    parts = [item for item in root.items if isinstance(item, Scope)]
    assert len(parts) == 40 and all(part.name.startswith("residual") for part in parts)
    assert all(part.divided for part in parts)


def test_a_loop_without_calls_is_cut_where_one_value_passes():
    _, root, found = seen(chain, *ARGUMENTS[chain])
    parts = [item for item in root.items if isinstance(item, Scope)]
    assert len(parts) > 2
    between = [v for (a, b), v in found[root].wires.items() if a in parts and b in parts]
    assert len(between) == len(parts) - 1 and all(len(passing) == 1 for passing in between)


def test_outputs_stand_at_the_top():
    _, root, found = seen(tower, *ARGUMENTS[tower])
    ends = [end for view in found.values() for end in view.ends if isinstance(end, Returned)]
    assert ends == [end for end in found[root].ends if isinstance(end, Returned)] and len(ends) == 1


def cell(h, x):
    return jnp.tanh(h * x) + jnp.sin(x) * h


def unrolled(h, xs):
    for t in range(16):
        h = cell(h, xs[t])
    return jnp.sum(h) + xs[0, 0]


def test_a_slice_that_one_call_alone_is_given_belongs_to_the_call():
    _, root, found = seen(unrolled, np.ones(2), np.ones((16, 2)))
    cells = [item for item in root.items if isinstance(item, Scope)]
    assert len(cells) == 16 and all(scope.name.startswith("cell") for scope in cells)
    for scope in cells:
        assert sum(n.equations[0].operation == "slice" for n in scope.operators) == 1
    # the slice that the loss takes is of no call
    assert any(n.equations[0].operation == "slice" for n in root.items if isinstance(n, Node))
    inputs = [end for end in found[root].ends if isinstance(end, Node) and end.kind == "leaf"]
    assert [str(node.variable) for node in inputs] == ["xs"]  # h is used in the first call alone
