"""Description of the software and hardware that a run uses."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    "paretopress",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "optuna",
    "pydantic",
    "ray",
    "datasets",
)


def environment() -> dict[str, Any]:
    """Return the versions of packages, the platform, the processors and the devices as JSON values.

    Threads and devices are those of torch. They are left out if torch is not loaded yet.
    """
    record: dict[str, Any] = {
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "processors": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        cuda = torch.cuda
        record["devices"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return record


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
