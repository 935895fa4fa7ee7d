"""What this machine is: the name of its processor, and what the CUDA driver tells about its first GPU.

The driver is asked through ctypes, so that nothing beside it has to be installed.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from pathlib import Path


def device_name(provider: str) -> str:
    """The name of what "cpu" or "cuda" computes on, as far as the system tells it."""
    return _gpu_name() if provider == "cuda" else _cpu_name()


def gpu_count() -> int:
    """The number of GPUs that the CUDA driver shows; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_memory_used() -> int | None:
    """Bytes in use on the first GPU, by all processes; None without one.

    The first call makes the CUDA context that onnxruntime computes in too, if there is none yet.
    """
    driver = _driver()
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver is None or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) != 0:
        return None
    driver.cuCtxPushCurrent_v2(context)
    status = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    return total.value - free.value if status == 0 else None


def _driver() -> ctypes.CDLL | None:
    """The CUDA driver, ready to be asked; None where there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _gpu_name() -> str:
    driver, name = _driver(), ctypes.create_string_buffer(100)
    if driver is None or driver.cuDeviceGetName(name, len(name), 0) != 0:
        return "GPU"
    return name.value.decode()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
