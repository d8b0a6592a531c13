"""Memory of the process: the peak of one run (also where one process does several), and what is kept for later."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Start a new peak where the system can: the GPU's allocator, and Linux's high-water mark of resident memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then the process's
        _CLEAR.write_text("5")


def peak_memory_bytes() -> int:
    """Largest memory held since the reset, bytes: the device's where a GPU was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a CUDA device, those that torch keeps for later included; None of any other device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep what it freed (blocks of up to 64 MiB, 1 GiB in all), where the C library is glibc.

    By default glibc gives large blocks back at once, and each tensor is made of new pages that the kernel has to clear
    first: 10 to 20% of the time of an update on the CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # mallopt's parameters, as malloc.h numbers them
    with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**26)
