"""What has to be so before torch is imported: threads that do not spin, memory that is not handed back, no telemetry.

Every way into the program calls it first: the page, the command line, the benches. What it sets can be overruled from the environment.
"""

import ctypes
import os
import platform
from collections.abc import Callable

ENVIRONMENT = {
    # Even a short spin (GOMP_SPINCOUNT) draws 1.5 times as fast on an idle machine, and a third as fast beside an open browser.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
MEMORY = {-3: 1 << 30, -1: 2**31 - 1, -8: 1}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX of glibc's malloc.h


def prepare_process() -> None:
    """Sets the environment where nothing else is said, and glibc's allocator.

    Between two denoising steps glibc gives every large buffer back to the kernel and takes it again, page fault by page fault: up to half of the time
    on a CPU. The worker is a thread, so it must also use the main arena: the others are unmapped whenever they are empty.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if platform.libc_ver()[0] == "glibc":
        mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
        for parameter, number in MEMORY.items():
            mallopt(parameter, number)
