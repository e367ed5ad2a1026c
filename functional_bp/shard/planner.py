"""A plan says how a loss that does not fit one device is trained on several, and keeps its word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import optax
from jax.sharding import Mesh

from functional_bp.graph.graph import format_bytes
from functional_bp.layouts.batch_law import BatchLaw
from functional_bp.layouts.layout import Layout, given_devices
from functional_bp.layouts.topology import is_here, platform_of
from functional_bp.shard.layout_search import LayoutSearch, PlanError, Roofline, SearchResult
from functional_bp.shard.plan_report import PlanReport, summary, summary_html
from functional_bp.train.state import TrainState
from functional_bp.train.step import Step


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """A plan is a way to train a loss on several devices within a memory budget, as compiled.

    Attributes:
        result: of the search: what was chosen, and what was tried.
    """

    result: SearchResult = field(repr=False)

    @property
    def step(self) -> Step:
        """Return the training step: ``step(state, batch) -> (state, logs)``."""
        return self.result.compiled.step

    @property
    def layout(self) -> Layout:
        """Return which mesh axis divides which dimensions."""
        assert self.result.chosen.trial.layout is not None
        return self.result.chosen.trial.layout

    @property
    def peak_bytes(self) -> int:
        """Return what the step needs on each device."""
        return self.result.compiled.peak_bytes

    @property
    def law(self) -> BatchLaw:
        """Return the law of the batch."""
        return self.result.search.law

    def init(self, params: Any, key: Any = 0) -> TrainState:
        """Make the state before the first step, each array where it will be.

        Args:
            params: the parameters, or a function of a random key that makes them.
            key: a random key, or a number.

        Raises:
            PlanError: the plan is for a topology whose devices are not here.
        """
        self._require_devices()
        return self.result.search.init(params, seed=key, layout=self.layout)

    def feed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Put each of the batches where the step takes it.

        Raises:
            PlanError: the plan is for a topology whose devices are not here.
        """
        self._require_devices()
        assert self.step.placement is not None
        return map(self.step.placement.split, batches)

    def _require_devices(self) -> None:
        search = self.result.search
        if not is_here(device := search.first_device):
            raise PlanError(
                f"the devices of this plan of {search.name} are not here",
                got=f"a topology of {search.count} × {platform_of(device)}",
                do="plan and train where they are, with devices=jax.devices()",
            )

    def within(self, memory: int | float | str) -> TrainingPlan:
        """Plan for another budget; what was compiled for this one is used again."""
        return TrainingPlan(self.result.search.find(memory))

    def explain(self) -> PlanReport:
        """Tell what was tried, refused and why, and what a smaller minibatch would need.

        One device's step is compiled for half, a quarter and an eighth of the batch.
        """
        return PlanReport(self.result, self.result.search.smaller)

    def __str__(self) -> str:
        return summary(self.result)

    def __repr__(self) -> str:
        needs = f"{format_bytes(self.peak_bytes)} of {format_bytes(self.result.memory_bytes)}"
        return f"<TrainingPlan of {self.result.search.name}: {self.result.division}, {needs}>"

    def _repr_html_(self) -> str:
        return summary_html(self.result)


def plan(
    loss: Callable[..., Any],
    params: Any,
    batch: Any,
    *,
    optimizer: optax.GradientTransformation,
    devices: int | str | Sequence[Any] | Mesh | None = None,
    memory: int | float | str,
    microbatches: bool = True,
    recompute: bool = True,
    roofline: Roofline | None = None,
    **options: Any,
) -> TrainingPlan:
    """Plan how a loss is trained on several devices, each within a memory budget.

    Layouts of the loss's dimensions, microbatches where the law of the batch allows them, and
    recomputation are ranked by estimates, and compiled until a whole step, with donation and
    optimizer, keeps the budget. Nothing runs, and no array is made.

    Args:
        loss: ``loss(params, batch)``, as of ``train.step``.
        params: arrays, or ``jax.ShapeDtypeStruct`` in their place.
        batch: the same, of one step.
        optimizer: of optax.
        devices: how many, a list of them, or a mesh whose axes are to be used; by default all. Or a
            TPU topology that need not be here, as ``"v5e:2x2"`` (functional-bp[tpu-topology]).
        memory: of each device: bytes, or a text such as "16 GiB".
        microbatches: whether a batch may be taken in parts, one after the other.
        recompute: whether parts of the loss may be made again in the reverse sweep.
        roofline: what a device can do; the plan then says at best how long a step takes.
        **options: of ``train.step``, such as ``clip_norm`` and ``precision``.

    Raises:
        NothingFitsError: nothing that was compiled keeps the budget: by how much, what the floor
            is, and what would help.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from functional_bp import shard
        >>> def loss(params, x):
        ...     return jnp.mean((jnp.tanh(x @ params["W1"]) @ params["W2"]) ** 2)
        >>> f32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
        >>> params = {"W1": f32(8, 64), "W2": f32(64, 8)}
        >>> found = shard.plan(loss, params, f32(32, 8), optimizer=optax.sgd(0.1), devices=1,
        ...                    memory="1 MiB")
        >>> found.peak_bytes <= 2**20
        True
    """
    if not isinstance(devices, Mesh):
        devices = given_devices(devices, PlanError)
    search = LayoutSearch(
        loss, params, batch, optimizer, devices, roofline, microbatches, recompute, options
    )  # fmt: skip
    return TrainingPlan(search.find(memory))
