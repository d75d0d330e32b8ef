"""`serrate doctor`: what is installed, and which implementations can serve here."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil

import torch
from rich.table import Table

from .. import __version__
from ..ops import implementations
from ..ops.attention import Call, Mask
from .show import facts, out

_PACKAGES = ("torch", "triton", "numpy", "pyarrow", "duckdb", "pydantic", "safetensors", "typer", "rich", "tensorboard")


def doctor() -> None:
    """Show versions, devices, and what is usable here.

    For each kernel, device and type: which implementation is chosen, and why another cannot serve.

    \b
    Example:
      serrate doctor
    """
    out.print(facts(f"serrate {__version__}", {"python": platform.python_version(), "system": platform.platform(),
                                                "cores": os.cpu_count() or 1, "disk free here": _free_disk(),
                                                **{name: _version(name) for name in _PACKAGES}}))
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, " \
                                   f"compute capability {properties.major}.{properties.minor}"
    out.print(facts("devices", devices))
    table = Table(title="attention")
    for column in ("device", "dtype", "implementation", "usable"):
        table.add_column(column)
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        if device == "cuda" and not torch.cuda.is_available():
            table.add_row(device, str(dtype).removeprefix("torch."), "any", "no: CUDA is not there")
            continue
        call = Call(torch.device(device), dtype, 64, 64, Mask(causal=True))
        chosen = False
        for candidate in implementations("attention"):
            reason = candidate.unusable(call)
            usable = f"no: {reason}" if reason else ("yes" if chosen else "yes, chosen")
            chosen = chosen or reason is None
            table.add_row(device, str(dtype).removeprefix("torch."), candidate.name, usable)
    out.print(table)


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _free_disk() -> str:
    return f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"
