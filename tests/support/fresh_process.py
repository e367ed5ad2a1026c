"""A process as a person starts it: single precision, one device, the usual optimisation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = ("XLA_FLAGS", "JAX_ENABLE_X64")


def python(*words: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What ``python WORDS`` returned and printed."""
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
    )
