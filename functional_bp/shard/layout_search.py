"""The search for a way to train a loss on several devices within a memory budget.

Candidates are estimated, ranked, and compiled until one fits: the whole step, with donation and
optimizer. What the compiler says is the promise.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

from functional_bp.errors import BackpropError
from functional_bp.graph.graph import format_bytes, short_place
from functional_bp.graph.names import positional_names
from functional_bp.layouts.batch_law import Law, batch_law
from functional_bp.layouts.dimensions import dimensions
from functional_bp.layouts.layout import Layout, layout
from functional_bp.memory.allocation import CompiledProgram, program_of
from functional_bp.memory.budgets import BudgetError
from functional_bp.memory.footprint import abstract, parse_bytes
from functional_bp.shard.communication import Communication, communication_of
from functional_bp.shard.divisions import Division, divisions
from functional_bp.shard.estimates import Lies, temporary_bytes, work_of
from functional_bp.train.objective import CallContext, as_objective
from functional_bp.train.state import TrainState, init
from functional_bp.train.step import Step, step

MOST_COMPILED = 16  # candidates
SMALLER = (2, 4, 8)  # minibatches
MOST_UNLIKELY = 6  # of them, although they are estimated not to fit
MOST_MORE = 2  # after one that fits
SURPRISE = 3  # times the estimated time of the best that fits: it counts as none
CLOSE = 0.95  # of the time of a candidate that fits: less makes it worth to compile another
SLACK = 1.15  # of the budget: what is estimated to need less is worth compiling
RECOMPUTED = 0.35  # of the temporaries, estimated to be left with recomputation
ALIKE = 0.5  # of the dimensions that candidates divide: they send alike more than estimated
AGAIN = 1.15  # of the operations, estimated with recomputation
A_MICROBATCH = 0.01  # of the time, for each further one


class PlanError(BackpropError, ValueError):
    """There is nothing to plan, or no plan."""


class NothingFitsError(PlanError):
    """No candidate keeps the budget.

    Attributes:
        least: the bytes per device of the leanest step that was compiled; 0 for none.
    """

    least: int = 0


@dataclass(frozen=True)
class Roofline:
    """A roofline says what a device can do at best; its figures are the person's.

    Attributes:
        flops: operations a second.
        link: bytes a second that a device sends.
    """

    flops: float
    link: float

    def seconds(self, flops: float, sent_bytes: float) -> float:
        """Return the time of a step that computes and sends one after the other."""
        return flops / self.flops + sent_bytes / self.link


RANKING = Roofline(flops=1e14, link=1e11)  # a thousand operations a byte, to rank candidates by


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """A step as it was compiled for a candidate; all figures are those of one device."""

    step: Step
    program: CompiledProgram
    communication: Communication

    @property
    def flops(self) -> int | None:
        """Return its operations, None where a loop ends by itself."""
        return self.program.flops

    @property
    def peak_bytes(self) -> int:
        """Return what it needs at once."""
        return self.program.peak_bytes

    @property
    def again(self) -> float:
        """Return its operations over those with nothing made again."""
        choices = self.step.choices.values()
        return max((1 + c.extra_flops / max(c.flops, 1) for c in choices), default=1.0)

    @property
    def compilations(self) -> int:
        """Return how many programs were compiled to find it."""
        return sum(c.compilations for c in self.step.choices.values()) or 1


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate with what is estimated of it, and what the compiler said.

    Attributes:
        division: the way to divide the step.
        layout: the same as a layout; None where the loss cannot be laid out so.
        argument_bytes: of state and batch on a device, exactly.
        temporary_bytes: estimated.
        sent_bytes: by a device, the least that the layout's sums take.
        edge_bytes: further ones, estimated, between neighbours in space.
        flops: of a device, estimated.
        why: it was refused; "" where it was not.
    """

    division: Division
    layout: Layout | None
    argument_bytes: int = 0
    temporary_bytes: float = 0
    sent_bytes: float = 0
    edge_bytes: float = 0
    flops: float = 0
    why: str = ""

    @property
    def estimated_bytes(self) -> float:
        """Estimate what a device needs."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def estimated_sent_bytes(self) -> float:
        """Estimate what a device sends."""
        return self.sent_bytes + self.edge_bytes


@dataclass(frozen=True, eq=False)
class Attempt:
    """What became of a trial in the search for one budget: compiled, or refused without."""

    trial: Trial
    compiled: CompiledStep | None
    why: str


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What the search found for a budget.

    Attributes:
        search: the search.
        memory_bytes: of a device, that the step keeps.
        chosen: what was compiled and keeps it.
        tried: what the search came across, in this order, the chosen one last.
        compilations: candidates that were compiled for this budget; others were before.
        programs: that were compiled for these: several where parts are made again.
        seconds: that it took.
    """

    search: LayoutSearch = field(repr=False)
    memory_bytes: int
    chosen: Attempt
    tried: tuple[Attempt, ...]
    compilations: int
    programs: int
    seconds: float

    @property
    def compiled(self) -> CompiledStep:
        """Return the step as it was compiled: its memory, communication and operations."""
        assert self.chosen.compiled is not None
        return self.chosen.compiled

    @property
    def division(self) -> Division:
        """Return what was chosen."""
        return self.chosen.trial.division

    @property
    def peak_bytes(self) -> int:
        """Return what the step needs on each device."""
        return self.compiled.peak_bytes


class Smaller(NamedTuple):
    """What one device needs for a batch of so many examples."""

    examples: int
    program: CompiledProgram


class LayoutSearch:
    """The search for plans of one loss; what was compiled for one budget serves the others."""

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Any,
        batch: Any,
        optimizer: optax.GradientTransformation,
        devices: Sequence[Any] | Mesh,
        roofline: Roofline | None = None,
        microbatches: bool = True,
        recompute: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.loss, self.optimizer, self.roofline = loss, optimizer, roofline
        self.devices, self.options = devices, dict(options or {})
        self.params, self.batch = jax.tree.map(abstract, (params, batch))
        self.state = jax.eval_shape(self.init, self.params)
        of_batch = _scalar(loss)
        self.dimensions = dimensions(of_batch, self.params, self.batch)
        self.law = batch_law(of_batch, self.params, self.batch)
        self.work = work_of(self.dimensions)
        self.alone = self._compiled(None, Division(()), self.batch, None)
        law = self.law if microbatches else replace(self.law, kind=Law.NONE)
        found = divisions(self.dimensions, self.work, law, self._sizes, recompute)
        trials = sorted(map(self._trial, found), key=lambda t: t.estimated_bytes)
        self.trials = sorted(trials, key=self._rank)
        self._done: dict[tuple[Division, int], CompiledStep | BudgetError] = {}
        self._sent: dict[Kind, float] = {}  # compiled to estimated, by kind of candidate
        # Of temporaries: what is more than estimated, as a difference and as a ratio.
        self._found: dict[tuple[Division, bool], tuple[float, float]] = {}

    def init(self, params: Any, **more: Any) -> TrainState:
        """Make the state before the first step."""
        return init(params, self.optimizer, precision=self.options.get("precision"), **more)

    @property
    def name(self) -> str:
        """The name of the loss."""
        return self.dimensions.graph.name

    @property
    def count(self) -> int:
        """How many devices there are."""
        return math.prod(self._sizes.values()) if isinstance(self._sizes, Mapping) else self._sizes

    @property
    def first_device(self) -> Any:
        """One of the devices, which are all of one kind: of this process, if it has one."""
        every = self.devices.devices.flat if isinstance(self.devices, Mesh) else self.devices
        return min(every, key=lambda device: device.process_index != jax.process_index())

    @property
    def platform(self) -> str:
        """The platform that steps are compiled for."""
        return self.alone.program.platform

    @property
    def _sizes(self) -> Mapping[str, int] | int:
        return dict(self.devices.shape) if isinstance(self.devices, Mesh) else len(self.devices)

    def _layout(self, division: Division) -> Layout:
        store = division.axes[0][0] if division.store else None
        if isinstance(self.devices, Mesh):
            return layout(self.devices, self.dimensions, store=store, **division.divided)
        return layout(division.mesh, self.dimensions, store=store, devices=self.devices,
                      **division.divided)  # fmt: skip

    def _trial(self, division: Division) -> Trial:
        try:
            made = self._layout(division)
        except BackpropError as error:
            return Trial(division, None, why=error.what)
        state, batch = self._placed(made)
        mesh = division.lies
        split = Lies(division.microbatches, frozenset(d.name for d in self._batches))
        lies = [*map(self.work.with_parts, mesh), split]
        temporaries = temporary_bytes(self.alone.program, self.work, lies)
        sent, flops = self.work.sent_bytes(mesh), self.work.flops_of(mesh)
        edges = self.work.edge_bytes(mesh)
        stored = self._stored_bytes(division, made)
        sent += stored * division.microbatches
        if division.microbatches > 1:  # the sum of the gradients
            temporaries += _bytes(state.params)
        if division.recomputes:
            temporaries *= RECOMPUTED
        return Trial(division, made, _bytes((state, batch)), temporaries, sent, edges, flops)

    @property
    def _batches(self) -> list[Any]:
        return [d for d in self.dimensions.values() if d.is_batch]

    def _stored_bytes(self, division: Division, made: Layout) -> float:
        """What gathering stored parameters costs more than the sum of their gradients."""
        if not division.store:
            return 0.0
        whole = self._layout(replace(division, store=False))
        kept, parts = (_bytes(self._placed(x)[0].params) for x in (whole, made))
        return max(kept - parts, 0)  # (n − 1)/n of those that are stored

    def _rank(self, trial: Trial, sent_bytes: float = 0, again: float = 0) -> tuple[bool, float]:
        """Layouts that leave devices idle last; then by the time that a step would take."""
        idle = trial.flops * self.count > 2 * self.work.flops_of(())
        roofline, division = self.roofline or RANKING, trial.division
        flops = trial.flops * (again or (AGAIN if division.recomputes else 1))
        seconds = roofline.seconds(flops, sent_bytes or trial.estimated_sent_bytes)
        return idle, seconds * (1 + A_MICROBATCH * (division.microbatches - 1))

    def _likely_rank(self, trial: Trial) -> tuple[bool, float]:
        """The same, with what like layouts were found to send."""
        kind = _kind(trial.division)
        alike = {_alike(kind, other): ratio for other, ratio in self._sent.items()}
        known = alike[max(alike)] if alike and max(alike) >= ALIKE else 1.0
        return self._rank(trial, trial.estimated_sent_bytes * known)

    def rank_of(self, trial: Trial, done: CompiledStep) -> tuple[bool, float]:
        """Rank what was compiled: whether it leaves devices idle, and the time of a step."""
        return self._rank(trial, done.communication.bytes, done.again)

    def _placed(self, made: Layout) -> tuple[TrainState, Any]:
        """State and batch as shapes that know where they lie."""
        state = jax.tree.map(_laid, self.state, made.of_tree(self.state))
        leaves, tree = jax.tree.flatten(self.batch)
        places = made.shardings()[-len(leaves) :]
        return state, jax.tree.unflatten(tree, map(_laid, leaves, places))

    def _compiled(
        self, made: Layout | None, division: Division, batch: Any, memory: int | None
    ) -> CompiledStep:
        taken = step(
            self.loss, self.optimizer, accumulate=division.microbatches, memory=memory,
            layout=made, **self.options,
        )  # fmt: skip
        state = self.state
        if made is None:
            first = SingleDeviceSharding(self.first_device)  # which may not be of this machine
            state, batch = jax.tree.map(lambda x: _laid(x, first), (state, batch))
        compiled = taken.lower(state, batch).compile()
        return CompiledStep(taken, program_of(compiled), communication_of(compiled))

    @functools.cached_property
    def smaller(self) -> tuple[Smaller, ...]:
        """One device's step on parts of the batch, beside the whole: 1, ½, ¼, ⅛."""
        found = [Smaller(self.law.size, self.alone.program)]
        for parts in SMALLER:
            if self.law.size and self.law.size % parts == 0:
                batch = self._part(parts)
                try:
                    done = self._compiled(None, Division(()), batch, None)
                except (TypeError, ValueError):  # a loss of batches of one size
                    break
                found.append(Smaller(self.law.size // parts, done.program))
        return tuple(found)

    def _part(self, parts: int) -> Any:
        """The batch with so much fewer examples."""
        leaves, tree = jax.tree.flatten(self.batch)
        first = len(self.dimensions.leaves) - len(leaves)
        sizes = [list(x.shape) for x in leaves]
        for place in (place for d in self._batches for place in d.places):
            if place.leaf >= first:
                sizes[place.leaf - first][place.axis] //= parts
        shapes = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(sizes, leaves)]
        return jax.tree.unflatten(tree, shapes)

    # One budget.

    def find(self, memory: int | float | str) -> SearchResult:
        """Compile candidates until one keeps the budget, and none that is left seems better."""
        budget, began = parse_bytes(memory), time.perf_counter()
        tried: dict[Division, Attempt] = {}
        best: tuple[tuple[bool, float], Trial, CompiledStep] | None = None
        count = programs = more = unlikely = 0
        while (trial := self._next(tried, budget, best and best[0])) is not None:
            unlikely += self._likely_bytes(trial) > SLACK * budget
            if count == MOST_COMPILED or more == MOST_MORE or unlikely > MOST_UNLIKELY:
                break
            done, is_new = self.measured(trial, budget)
            is_settled = best is not None and best[0][1] < SURPRISE * self._rank(best[1])[1]
            count, more = count + is_new, more + (is_new and is_settled)
            programs += done.compilations if is_new else 0
            tried[trial.division] = self._refused(trial, done, budget)
            if isinstance(done, CompiledStep) and done.peak_bytes <= budget:
                rank = self.rank_of(trial, done)
                best = min(best or (rank, trial, done), (rank, trial, done), key=lambda x: x[0])
        if best is None:
            raise self._nothing_fits(tried, budget, count)
        chosen = tried[best[1].division] = Attempt(_as_compiled(best[1], best[2]), best[2], "")
        seconds = time.perf_counter() - began
        return SearchResult(self, budget, chosen, tuple(tried.values()), count, programs, seconds)

    def _next(
        self, tried: Mapping[Division, Attempt], budget: int, best: tuple[bool, float] | None
    ) -> Trial | None:
        """The first in order that is likely to fit, or else the one that needs least.

        Where one fits already, the first that is likely to fit and to be clearly better.
        """
        left = [t for t in self.trials if t.layout and t.division not in tried
                and t.argument_bytes <= budget]  # fmt: skip
        likely = [t for t in left if self._likely_bytes(t) <= SLACK * budget]
        if best is None:
            return min(likely, key=self._likely_rank) if likely else min(
                left, key=self._likely_bytes, default=None)  # fmt: skip
        idle, seconds = best
        better = [t for t in likely if self._likely_rank(t) < (idle, CLOSE * seconds)]
        return min(better, key=self._likely_rank, default=None)

    def _likely_bytes(self, trial: Trial) -> float:
        """The estimate, put right by what the same layout needed, or others did."""
        division, estimated = trial.division, trial.temporary_bytes
        known = self._found.get((_layout_of(division), division.recomputes))
        if known is not None:  # what is more than estimated does not go with the microbatches
            extra, ratio = known
            return trial.argument_bytes + max(estimated + extra, estimated * min(ratio, 1))
        alike = [r for (_, again), (_, r) in self._found.items() if again is division.recomputes]
        ratio = math.exp(np.mean(np.log(alike))) if alike else 1.0
        return trial.argument_bytes + ratio * estimated

    def measured(self, trial: Trial, budget: int) -> tuple[CompiledStep | BudgetError, bool]:
        """Compile a trial, unless it was; say whether it is new."""
        division = trial.division
        key = division, budget if division.recomputes else 0
        if is_new := key not in self._done:
            assert trial.layout is not None
            try:
                memory = budget if division.recomputes else None
                done = self._compiled(trial.layout, division, self.batch, memory)
                self._learn(trial, done.program.temporary_bytes)
                sent = max(done.communication.bytes, 1) / max(trial.estimated_sent_bytes, 1)
                self._sent[_kind(division)] = max(sent, 1.0)
            except BudgetError as error:
                done = error
                self._learn(trial, error.least)
            self._done[key] = done
        return self._done[key], is_new

    def _learn(self, trial: Trial, temporaries: int) -> None:
        estimated = max(trial.temporary_bytes, 1)
        found = temporaries - estimated, max(temporaries, 1) / estimated
        self._found[_layout_of(trial.division), trial.division.recomputes] = found

    def _refused(self, trial: Trial, done: CompiledStep | BudgetError, budget: int) -> Attempt:
        if isinstance(done, CompiledStep):
            more = done.peak_bytes - budget
            why = f"{format_bytes(more)} too much" if more > 0 else "fits, but is more costly"
            return Attempt(trial, done, why)
        return Attempt(trial, None, f"temporaries of {format_bytes(done.least)} at least")

    def _nothing_fits(
        self, tried: Mapping[Division, Attempt], budget: int, count: int
    ) -> NothingFitsError:
        """Say by how much, what the floor is, and what would help."""
        compiled = [(t.compiled, t.trial) for t in tried.values() if t.compiled]
        if not compiled:
            laid = [trial for trial in self.trials if trial.layout]
            trial = min(laid, key=lambda t: t.argument_bytes)
            error = NothingFitsError(
                f"state and batch of {self.name} alone do not fit the devices",
                got=f"{format_bytes(trial.argument_bytes)} per device with {trial.division}",
                expected=f"{format_bytes(budget)} at most",
                do="take more devices, or an optimizer that keeps less (sgd, adafactor)",
            )
            error.least = trial.argument_bytes
            return error
        done, trial = min(compiled, key=lambda found: found[0].peak_bytes)
        need, more = done.peak_bytes, format_bytes(done.peak_bytes - budget)
        error = NothingFitsError(
            f"no plan that was found keeps {self.name} within the memory of a device",
            got=f"{format_bytes(need)} per device at least, {more} too much,\n"
            f"            with {trial.division} ({count} candidates compiled);\n"
            f"            {_floor(done.program)}",
            expected=f"{format_bytes(budget)} at most",
            do=self._advice(done.program, budget),
        )
        error.least = need
        return error

    def _advice(self, program: CompiledProgram, budget: int) -> str:
        """What would help, by what takes most."""
        told = [f"give each device {format_bytes(program.peak_bytes)}, or take more devices"]
        if program.temporary_bytes > program.argument_bytes:
            if self.law.kind is Law.COUPLED:
                told.append(f"microbatches are not used here, for the loss is {self.law}")
            told.append("take fewer examples in a batch")
        else:
            told.append("take an optimizer that keeps less (sgd, adafactor), or a smaller model")
        return ";\n            ".join(told)


def _floor(program: CompiledProgram) -> str:
    """The largest array that a device holds, and the line that makes it."""
    held = [(a.bytes, a.type, a.argument, None) for a in program.allocations if a.argument]
    held += [(b.bytes, b.type, b.origin.path.rpartition("/")[2], b.origin.source)
             for b in program.temporaries if b.is_live(program.peak)]  # fmt: skip
    if not held:
        return ""
    size, type, name, source = max(held, key=lambda array: array[0])
    where = f" of {short_place(source)}" if source else ""
    return f"the largest array of a device is {name} {type}{where}, {format_bytes(size)}"


Kind = tuple[frozenset[str], bool]


def _kind(division: Division) -> Kind:
    """Candidates of one kind divide the same dimensions, over other numbers of devices."""
    return frozenset(n for names in division.divided.values() for n in names), division.store


def _alike(one: Kind, other: Kind) -> float:
    """Which share of the dimensions that two kinds divide they have in common; less, if only one
    stores parameters in parts.
    """
    union = one[0] | other[0]
    share = len(one[0] & other[0]) / len(union) if union else 1.0
    return share - 0.25 * (one[1] is not other[1])


def _layout_of(division: Division) -> Division:
    return replace(division, microbatches=1, recomputes=False)


def _as_compiled(trial: Trial, done: CompiledStep) -> Trial:
    """The trial; without recomputation where the budget was kept with nothing made again."""
    if any(choice.schedule.flops for choice in done.step.choices.values()):
        return trial
    return replace(trial, division=replace(trial.division, recomputes=False))


def _laid(shape: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _bytes(tree: Any) -> int:
    """The bytes of a device's part of arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _scalar(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss as a function of parameters and batch that returns one number."""
    objective = as_objective(loss)

    @functools.wraps(loss)
    def of_batch(params: Any, batch: Any) -> Any:
        context = CallContext(jax.random.key(0), None, True)
        return objective(params, batch, context).loss

    vars(of_batch).pop("__wrapped__", None)
    called = positional_names(loss, 2)
    if all(map(str.isidentifier, called)):  # the person's names of parameters and batch
        named = (inspect.Parameter(k, inspect.Parameter.POSITIONAL_ONLY) for k in called)
        vars(of_batch)["__signature__"] = inspect.Signature(tuple(named))
    return of_batch
