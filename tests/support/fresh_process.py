"""A process as a person starts it: single precision, one device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment(optimised: bool = False) -> dict[str, str]:
    """XLA optimises as little as it does in the tests (tests/conftest.py), or as users have it."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    flags = env.pop("XLA_FLAGS", "").split()
    if not optimised:
        env["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    return env


def python(
    *words: Any, cwd: Path | None = None, optimised: bool = False
) -> subprocess.CompletedProcess[str]:
    """What ``python WORDS`` returned and printed."""
    env = environment(optimised)
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
    )
