"""The arrays of a checkpoint on disk, by Orbax: written and read by name, in host memory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functional_bp.errors import TrainingError, compose


def require_orbax() -> Any:
    """The module ``orbax.checkpoint``.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise TrainingError(
            compose("checkpoints need Orbax, which is not installed", got=str(error),
                    do="pip install 'functional-bp[train]'")
        ) from error  # fmt: skip
    return ocp


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; they must not change meanwhile."""
    ocp = require_orbax()
    with _quiet(), _checkpointer(ocp) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(arrays)))


def read_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a folder, which have these names."""
    ocp = require_orbax()
    with _quiet(), _checkpointer(ocp) as checkpointer:
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))
    return {name: np.asarray(array) for name, array in found.items()}


@contextlib.contextmanager
def _checkpointer(ocp: Any) -> Iterator[Any]:
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
    )
    # Weights hardly compress (8 % of random ones), and take half as long again to write if tried.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    made = ocp.Checkpointer(handler)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells its steps to absl's log; what goes wrong is raised, and said by this package."""

    def is_foreign(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    try:
        yield
    finally:
        logger.removeFilter(is_foreign)
