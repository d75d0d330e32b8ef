"""The rows of figures: flat, made by programs, each with the command, commit, device and versions behind it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..files import write_aside

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parents[1]  # of the repository, where this is a checkout

KEY = ("subject", "workload", "implementation", "metric", "seed", "device")
OURS = "triton"
NO_PEERS = ("batch", "limit", OURS)
TIMES = ("forward_ms", "forward_backward_ms")
LIMITS = ("limit_ms", "limit_forward_backward_ms")
_MARKS = ("<!-- GPU figures -->\n", "<!-- end of GPU figures -->")

Row = dict[str, Any]


def row(subject: str, workload: str, implementation: str, metric: str, value: float, unit: str,
        seed: int = 0, packages: tuple[str, ...] = ("torch",)) -> dict[str, Any]:
    """Return one row with what is known of this process: command, commit, device, versions (of `packages` too)."""
    return {"subject": subject, "workload": workload, "implementation": implementation, "metric": metric,
            "value": value, "unit": unit, "seed": seed, "command": command(), "commit": commit(),
            "device": device(), "versions": versions(packages)}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write(path: Path, rows: Sequence[dict[str, Any]], key: Sequence[str] = KEY) -> None:
    """Write rows as `text` has them, the file whole at any moment.

    Rows that stood there before with the `key` of a new one are replaced, others stay.
    """
    new = {tuple(entry[name] for name in key) for entry in rows}
    kept = [entry for entry in read(path) if tuple(entry[name] for name in key) not in new]
    with write_aside(path) as partial:
        partial.write_text(text([*kept, *rows]), encoding="utf-8")


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a JSON list, a row a line."""
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in rows) + "\n]\n"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def origin(rows: Iterable[dict[str, Any]]) -> str:
    """Say where figures come from: each command once, with device, commit and versions, as a Markdown list."""
    seen = {(row["command"], row["device"], row["commit"],
             ", ".join(f"{name} {value}" for name, value in row["versions"].items())) for row in rows}
    return "\n".join(f"- `{command}`: {device}; commit {commit}; {versions}"
                     for command, device, commit, versions in sorted(seen))


class Found:
    """Figures by workload, implementation and metric; `peers` of ours in the order of the rows."""

    def __init__(self, rows: Iterable[Row]):
        self._values: dict[tuple[str, str, str], float] = {}
        self.peers: list[str] = []
        for row in rows:
            self._values[row["workload"], row["implementation"], row["metric"]] = row["value"]
            if row["implementation"] not in [*self.peers, *NO_PEERS]:
                self.peers.append(row["implementation"])

    def value(self, workload: str, implementation: str, metric: str) -> float | None:
        """Return a figure, None where it was not measured."""
        return self._values.get((workload, implementation, metric))

    def cell(self, workload: str, implementation: str, metrics: Sequence[str]) -> str:
        """Return figures of one implementation as text, `–` where there is none."""
        values = [self.value(workload, implementation, metric) for metric in metrics]
        if all(value is None for value in values):
            return "–"
        return " / ".join("–" if value is None else written(value) for value in values)

    def times(self, workload: str, implementation: str, prefix: str = "") -> list[float | None]:
        """Return the times of the forward pass and of both passes."""
        return [self.value(workload, implementation, prefix + metric) for metric in TIMES]

    def best(self, workload: str, peers: Sequence[str]) -> list[float | None]:
        """Return the least of each time of these peers, which need not be of one peer."""
        others = [[self.value(workload, peer, metric) for peer in peers] for metric in TIMES]
        return [min((value for value in values if value is not None), default=None) for values in others]

    def to_best_peer(self, workload: str, prefix: str = "") -> str:
        """Return each time of ours over the least of any peer of the same run; below 1 ours is ahead."""
        return ratios(self.times(workload, OURS, prefix), self.best(workload, self.peers))

    def to_limit(self, workload: str, prefix: str = "") -> str:
        """Return each time of ours over the least that the device allows."""
        return ratios(self.times(workload, OURS, prefix), [self.value(workload, "limit", metric) for metric in LIMITS])


def ratios(own: Sequence[float | None], others: Sequence[float | None]) -> str:
    """Return each figure over another as text, `–` where there is none."""
    found = ["–" if one is None or not other else f"{one / other:.2f}" for one, other in zip(own, others, strict=True)]
    return "–" if set(found) == {"–"} else " / ".join(found)


def to_limit(rows: Sequence[Row]) -> str:
    """Return each time of ours over the least that the device allows, of the first workload of these rows."""
    prefix = "graph_" if any(row["metric"].startswith("graph_") for row in rows) else ""
    return Found(rows).to_limit(rows[0]["workload"], prefix) if rows else "–"


def written(value: float) -> str:
    """Return a figure in three digits, whole numbers above."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def beside_peers(rows: Sequence[Row]) -> str:
    """Return the table of ours beside its peers, a line a workload: times, ratios, memory; and where they come from.

    Where graphs were replayed, which leaves out the host's time, the limit is compared with these.
    """
    if not rows:
        return "Not measured yet."
    found = Found(rows)
    shown = [OURS, *found.peers]
    prefix = "graph_" if any(row["metric"].startswith("graph_") for row in rows) else ""
    own: dict[str, Sequence[str]] = {f"**{OURS}**": TIMES}
    if prefix:
        own["graph replayed"] = [prefix + metric for metric in TIMES]
    head = ["workload", "events", "limit", *own, *found.peers, f"{OURS} / best peer",
            f"{'graph' if prefix else OURS} / limit", "peak MiB: " + ", ".join(shown)]
    body = [[name, found.cell(name, "batch", ["events"]), found.cell(name, "limit", LIMITS),
             *(found.cell(name, OURS, metrics) for metrics in own.values()),
             *(found.cell(name, peer, TIMES) for peer in found.peers), found.to_best_peer(name),
             found.to_limit(name, prefix), ", ".join(found.cell(name, each, ["peak_mib"]) for each in shown)]
            for name in dict.fromkeys(row["workload"] for row in rows)]
    return table(head, body) + "\n\n" + origin(rows)


def between(page: str, start: str, end: str, block: str) -> str:
    """Return the page with a block of lines between two marks, as it is where the first is missing."""
    before, mark, rest = page.partition(start)
    return f"{before}{start}{block}\n{end}{rest.partition(end)[2]}" if mark else page


def fill(readme: Path, rows: Sequence[Row]) -> None:
    """Fill the table of a room's README from rows."""
    page = between(readme.read_text(encoding="utf-8"), *_MARKS, beside_peers(rows))
    readme.write_text(page, encoding="utf-8")


def command() -> str:
    """Return how this program was called, without paths of the machine."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(_PACKAGE):
        parts = script.relative_to(_PACKAGE.parent).with_suffix("").parts
        called = "python -m " + ".".join(part for part in parts if part != "__main__")
    elif script.suffix == ".py":
        called = f"python {script.relative_to(_ROOT) if script.is_relative_to(_ROOT) else script.name}"
    else:
        called = script.name
    return " ".join([called, *(_without_place(part) for part in sys.argv[1:])])


def _without_place(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_place(value)}"
    path, data = Path(argument), os.environ.get("SERRATE_DATA")
    if data and path.is_relative_to(data):
        return str(Path("$SERRATE_DATA") / path.relative_to(data))
    return shlex.quote(path.name if path.is_absolute() else argument)


@lru_cache(maxsize=1)
def commit() -> str:
    """Return the short commit, with a + where the tree differs from it; `SERRATE_COMMIT`, or `unknown`, without git."""
    if "SERRATE_COMMIT" in os.environ:
        return os.environ["SERRATE_COMMIT"]
    if not (_ROOT / ".git").exists() or _PACKAGE.parent.name != "src":  # installed; git would find someone else's
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git here, or one that does not trust this checkout
        return "unknown"


def device(kind: str | None = None) -> str:
    """Return the name of the device of a kind (`cpu`, `cuda`), or of the one that this process would use."""
    on_gpu = torch.cuda.is_available() if kind is None else kind == "cuda"
    return torch.cuda.get_device_name() if on_gpu else f"CPU, {os.cpu_count()} cores"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions that matter; `unknown` where a package came under another name."""
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"

    return {"python": platform.python_version(), **{name: installed(name) for name in packages},
            "serrate": __version__}
