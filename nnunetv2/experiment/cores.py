"""The cores of the processor that this process may use."""

import math
import os

from nnunetv2.experiment.control_groups import cpu_limit


def usable_cores() -> int:
    """Number of the cores that this process may use, which can be fewer than the machine has; a part counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return cores if limit is None else min(cores, math.ceil(limit))
