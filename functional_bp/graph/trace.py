"""A function becomes its ``Graph``: traced, every value named, the jaxpr's other facts kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp import _jax
from functional_bp.engine.define_by_run import record_graph
from functional_bp.engine.staging import stage
from functional_bp.errors import SHORT_DTYPES, compose
from functional_bp.graph import names
from functional_bp.graph.flops import dot_subscripts
from functional_bp.graph.graph import Equation, Graph, Nested, Variable
from functional_bp.graph.nested import Inner, implementation, inner_graphs


def name(x: Any, tag: str) -> Any:
    """Return x itself, called ``tag`` in graphs, pictures, tables and recomputation policies.

    The same as ``jax.ad_checkpoint.checkpoint_name``, whose names are seen here too. Of a pytree,
    every leaf carries the tag.

    Args:
        x: an array, or a pytree of arrays.
        tag: what to call it.

    Example:
        >>> import jax.numpy as jnp
        >>> trace(lambda x: jnp.sin(name(2.0 * x, "angle")), 1.0)["angle"].tag
        'angle'
    """
    if not isinstance(tag, str) or not tag:
        raise TypeError(f"bp.name(x, tag) wants a tag that is a non-empty string, got {tag!r}")
    return checkpoint_name(x, tag)


def trace(fun: Callable[..., Any], *args: Any, staged: bool | None = None, **kwargs: Any) -> Graph:
    """Trace ``fun(*args, **kwargs)`` to its computational graph; nothing is computed.

    Where Python has to look at values (``if x > 0``), the function is run at the given arguments,
    and the graph is what it did there (``Graph.staged`` is False).

    Args:
        fun: takes and returns pytrees of arrays.
        *args: its arguments: arrays, numbers, ``jax.ShapeDtypeStruct`` in their place, or pytrees
            of those. Leaves that are none of those (strings, functions) are passed on.
        staged: trace without values (True), or run and record (False); by default the first,
            and the second where that cannot be.
        **kwargs: further arguments, by keyword.

    Returns:
        A graph with one input per array, named by the argument and the path below it.

    Example:
        >>> import jax
        >>> x = jax.ShapeDtypeStruct((5,), "float32")
        >>> graph = trace(lambda p, x: p["w"] * x, {"w": x}, x)
        >>> graph.inputs, graph.outputs
        ((<p['w']: f32[5]>, <x: f32[5]>), (<result: f32[5]>,))
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [names.leaf_is_array(leaf) for leaf in leaves]
    paths: list[str] = []

    def flat(*arrays: Any) -> list[Any]:
        found = iter(arrays)
        inner_args, inner_kwargs = jax.tree.unflatten(
            tree, [next(found) if on else leaf for on, leaf in zip(traced, leaves)]
        )
        out = fun(*inner_args, **inner_kwargs)
        paths[:] = names.output_paths(out)
        return jax.tree.leaves(out)

    arrays = [leaf for on, leaf in zip(traced, leaves) if on]
    jaxpr, consts, is_staged = _graph_of(flat, arrays, staged)
    called = names.argument_names(fun, args, kwargs)
    inputs: list[str | None] = [n for on, n in zip(traced, called) if on]
    constants = names.closure_names(fun, consts)
    reserved = names.given_names(jaxpr) | set(filter(None, [*inputs, *constants]))
    title = names.function_name(fun)
    graph = _Builder(reserved).graph(title, jaxpr, consts, inputs, constants, paths)
    return graph if is_staged else dataclasses.replace(graph, staged=False)


def _graph_of(
    flat: Callable[..., list[Any]], arrays: Sequence[Any], staged: bool | None
) -> tuple[Jaxpr, list[Any], bool]:
    """The graph of a flat function, its constants, and whether it was staged."""
    is_known = not any(isinstance(x, jax.ShapeDtypeStruct | Tracer) for x in arrays)
    if staged is not False:
        try:
            jaxpr, consts, is_whole = stage(flat, arrays)
            if is_whole or staged or not is_known:
                return jaxpr, consts, True
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            if staged or not is_known:
                raise
    if not is_known:
        raise TypeError(
            compose("staged=False runs the function", got="arguments without values",
                    expected="arrays", do="pass arrays, or leave staged out")
        )  # fmt: skip
    return *record_graph(flat, arrays), False


class _Builder:
    """Makes the graphs of one trace; letters go on from graph to nested graph."""

    def __init__(self, reserved: set[str]) -> None:
        self.letters = names.letters(reserved)

    def graph(
        self,
        title: str,
        jaxpr: Jaxpr,
        consts: list[Any],
        input_names: list[str | None],
        constant_names: list[str | None],
        paths: list[str],
        is_nested: bool = False,
        call: tuple[str, int] | None = None,
    ) -> Graph:
        tags, aliases = _tags(jaxpr)
        taken: set[str] = set()
        of_var: dict[Var, Variable] = {}
        if is_nested:  # a loop's carry h, whose next value is tagged h, is h_0
            input_names = [n if n not in tags.values() else f"{n}_0" for n in input_names]

        def add(var: Var, wanted: str | None, kind: str, value: Any = None) -> Variable:
            tag = tags.get(var)
            called = names.unique(tag or wanted or next(self.letters), taken)
            taken.add(called)
            of_var[var] = made = Variable(called, var.aval, kind, tag, value)
            return made

        inputs = [add(v, n, "input") for v, n in zip(jaxpr.invars, input_names)]
        constants = [
            add(v, n, "constant", value)
            for v, n, value in zip(jaxpr.constvars, constant_names, consts, strict=True)
        ]
        ends: dict[Var, str] = {}
        if not is_nested:
            for atom, path in zip(jaxpr.outvars, paths):
                if not isinstance(atom, Literal):
                    ends.setdefault(aliases.get(atom, atom), path)

        def find(atom: Any) -> Variable:
            if not isinstance(atom, Literal):
                return of_var[aliases[atom] if atom in aliases else atom]
            return Variable(_number(atom.val), atom.aval, "literal", None, atom.val)

        used = {a for e in jaxpr.eqns for a in e.invars if not isinstance(a, Literal)}
        used |= {a for a in jaxpr.outvars if not isinstance(a, Literal)}
        equations: list[Equation] = []
        for eqn in jaxpr.eqns:
            if eqn.outvars and eqn.outvars[0] in aliases:
                continue
            operands = tuple(map(find, eqn.invars))
            outputs = []
            for var in eqn.outvars:
                if var not in used and var not in tags:
                    of_var[var] = Variable("_", var.aval, "intermediate")
                    outputs.append(of_var[var])
                else:
                    outputs.append(add(var, ends.get(var), "intermediate"))
            source = _source(eqn, call)
            graphs = inner_graphs(eqn) or implementation(eqn)
            nested = tuple(self.nested(inner, operands, source) for inner in graphs)
            equations.append(
                Equation(
                    index=len(equations),
                    operation=eqn.primitive.name,
                    label=nested[0].graph.name if len(nested) == 1 else "",
                    inputs=operands,
                    outputs=tuple(outputs),
                    parameters=_short_parameters(eqn),
                    nested=nested,
                    scope=_jax.name_scope(eqn),
                    source=source,
                    eqn=eqn,
                )
            )
        for var, root in aliases.items():
            of_var[var] = of_var[root]
        outs = tuple(map(find, jaxpr.outvars))
        return Graph(title, tuple(inputs), tuple(constants), outs, tuple(paths), tuple(equations),
                     jaxpr, tuple(consts), of_var)  # fmt: skip

    def nested(
        self, inner: Inner, operands: tuple[Variable, ...], call: tuple[str, int] | None
    ) -> Nested:
        fed = tuple(None if i is None else operands[i] for i in inner.operands)
        outer = [None if v is None or v.kind == "literal" else v.name for v in fed]
        inputs = names.inner_names(inner.jaxpr, outer, inner.unchanged)
        paths: list[str] = list(getattr(inner.jaxpr.debug_info, "result_paths", None) or ())
        if len(paths) != len(inner.jaxpr.outvars):
            paths = [f"result[{i}]" for i in range(len(inner.jaxpr.outvars))]
        graph = self.graph(
            names.inner_function(inner.jaxpr), inner.jaxpr, inner.consts, inputs,
            [None] * len(inner.consts), paths, is_nested=True, call=call,
        )  # fmt: skip
        return Nested(inner.label, graph, inner.runs, fed)


def _tags(jaxpr: Jaxpr) -> tuple[dict[Var, str], dict[Var, Var]]:
    """Each tagged variable's tag, and for each dissolved ``name`` equation output → input."""
    defined = {v for eqn in jaxpr.eqns for v in eqn.outvars}
    tags: dict[Var, str] = {}
    aliases: dict[Var, Var] = {}
    for eqn in filter(names.is_tag, jaxpr.eqns):
        (atom,), (out,) = eqn.invars, eqn.outvars
        root = None if isinstance(atom, Literal) else aliases.get(atom, atom)
        if root is None or root not in defined or root in tags:
            tags[out] = eqn.params["name"]
        else:
            tags[root], aliases[out] = eqn.params["name"], root
    return tags, aliases


def _number(value: Any) -> str:
    """A literal for a reader: ``0.5``, ``-inf``, ``True``."""
    if getattr(value, "shape", ()) != ():
        return "…"
    try:
        plain = np.asarray(value).item()
    except (TypeError, ValueError):
        return str(value)
    return f"{plain:.7g}" if isinstance(plain, float) and plain % 1 else str(plain)


def _source(eqn: JaxprEqn, call: tuple[str, int] | None) -> tuple[str, int] | None:
    found = _jax.source_line(eqn, call)
    return None if found is None or found[0] == __file__ else found


def _short_parameters(eqn: JaxprEqn) -> dict[str, str]:
    """The parameters that tell a reader something that the types do not."""
    if eqn.primitive.name == "dot_general":
        return {"subscripts": dot_subscripts(eqn)}
    short: dict[str, str] = {}
    for key, value in eqn.params.items():
        if key in _IMPLIED or key.endswith("nconsts") or key.startswith("num_"):
            continue
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        if plain or value is True:
            short[key] = str(value)
        elif isinstance(value, tuple) and value and all(isinstance(v, int) for v in value):
            short[key] = str(value).replace(" ", "")
        elif key == "new_dtype":
            short[key] = SHORT_DTYPES.get(str(value), str(value))
    return short


# Parameters whose content is in the outputs' types, in the label, or in the nested graphs.
_IMPLIED = {
    "shape", "name", "dtype", "weak_type", "jaxpr", "length", "prevent_cse", "differentiated",
    "keep_unused", "inline", "symbolic_zeros", "donated_invars", "unroll", "const_lengths",
    "linear", "slice_sizes", "new_sizes", "check_vma", "is_stable", "limit_indices",
}  # fmt: skip
