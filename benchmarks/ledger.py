"""The rows of figures: flat, made by programs, each with the command, commit, device and versions behind it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import serrate

ROOT = Path(__file__).parent.parent


def row(subject: str, workload: str, implementation: str, metric: str, value: float, unit: str,
        seed: int = 0, packages: tuple[str, ...] = ("torch",)) -> dict[str, Any]:
    """Return one row with what is known of this process: command, commit, device, versions (of `packages` too)."""
    return {"subject": subject, "workload": workload, "implementation": implementation, "metric": metric,
            "value": value, "unit": unit, "seed": seed, "command": command(), "commit": commit(),
            "device": device(), "versions": versions(packages)}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a JSON list, a row a line; rows of the same (subject, workload, implementation, metric, seed,
    device) that stood there before are replaced, others stay."""
    def key(entry: dict[str, Any]) -> tuple:
        return tuple(entry[name] for name in ("subject", "workload", "implementation", "metric", "seed", "device"))

    old = json.loads(path.read_text()) if path.exists() else []
    new = {key(entry) for entry in rows}
    kept = [entry for entry in old if key(entry) not in new] + rows
    path.write_text("[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in kept) + "\n]\n")


def command() -> str:
    """Return how this program was called, without paths of the machine."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", str(shown), *(_without_place(part) for part in sys.argv[1:])])


def _without_place(argument: str) -> str:
    data = os.environ.get("SERRATE_DATA")
    if data and argument.startswith(data):
        return "$SERRATE_DATA" + argument.removeprefix(data)
    return Path(argument).name if argument.startswith("/") else shlex.quote(argument)


def commit() -> str:
    """Return the short commit, with a + where the tree differs from it; `SERRATE_COMMIT` where there is no git."""
    if "SERRATE_COMMIT" in os.environ:
        return os.environ["SERRATE_COMMIT"]
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def device() -> str:
    """Return the device that figures of this process come from."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions that matter."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages},
            "serrate": serrate.__version__}
