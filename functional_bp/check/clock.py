"""The clock of a diagnosis: on a busy machine it searches as far as on a quiet one, but later."""

from __future__ import annotations

import time

WORKED = 0.75  # how much of the clock stands still while the thread waits for a processor


def now() -> float:
    """Seconds that have passed; those in which this thread did not run count a quarter.

    So a search for *n* seconds takes n where nothing else runs, and at most 4 n.
    """
    return WORKED * time.thread_time() + (1 - WORKED) * time.monotonic()
