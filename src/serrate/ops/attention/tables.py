"""The tables of this room's README from rows of figures: ours beside its peers, a column a workload."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import figures
from ..figures import LIMITS, OURS, TIMES, Found, Row, ratios
from .workloads import CROWD, LENGTHS, POINTWISE, POINTWISE_NAME, SMALLEST, TARGETS, WORKLOADS

README = Path(__file__).with_name("README.md")
SOFTMAX_PEERS = ("varlen", "flex")
QUOTED = "HSTU Triton (SiLU)"
_MARKS = ("<!-- GPU figures -->\n", "<!-- end of GPU figures -->")
_POINTWISE_MARKS = ("<!-- pointwise figures -->\n", "<!-- end of pointwise figures -->")


def comparison(rows: list[Row], quoted: list[Row]) -> str:
    """Return the table of the workloads of these rows: times of all, ratios to the best peer, memory."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    found, others = Found(rows), Found(quoted)

    def line(label: str, implementation: str, metrics: Sequence[str], of: Found = found) -> list[str]:
        return [label, *(of.cell(workload, implementation, metrics) for workload in workloads)]

    body = [line("events", "batch", ["events"]), line("limit", "limit", LIMITS),
            line(f"**{OURS}**", OURS, TIMES),
            line(f"{OURS}, graph replayed", OURS, [f"graph_{name}" for name in TIMES])]
    body += [line(peer, peer, TIMES) for peer in found.peers]
    body += [line(f"{peer}, quoted", peer, TIMES, others) for peer in others.peers]
    body += [[f"**{OURS} / best peer**", *(found.to_best_peer(workload) for workload in workloads)],
             ["graph replayed / best peer", *(found.to_best_peer(workload, "graph_") for workload in workloads)],
             [f"{OURS} / limit", *(found.to_limit(workload) for workload in workloads)]]
    body += [line(f"peak MiB: {name}", name, ["peak_mib"]) for name in (OURS, "varlen", "flex")]
    return figures.table(["", *workloads], [each for each in body if set(each[1:]) != {"–"}])


def pointwise(rows: list[Row], quoted: list[Row]) -> str:
    """Return the table of pointwise weights and of bias, a line a workload: times, then what is how many times as slow.

    The bar of SiLU is the faster of the peers that compute a softmax under the same mask; bias is compared with the
    same weights without.
    """
    found, others = Found(rows), Found(quoted)
    silu, silu_biased, softmax, softmax_biased = (
        f"{OURS} {name}" for name in ("silu", "silu biased", "softmax", "softmax biased"))
    head = ["", "events", "**SiLU**", "biased", "softmax", "biased", "varlen", "flex", "dense SiLU", "compiled",
            "HSTU Triton, quoted", "**best softmax peer / SiLU**", "softmax / SiLU", "biased / SiLU",
            "biased / softmax", "peak MiB: SiLU, biased"]
    body = []
    for name in dict.fromkeys(row["workload"] for row in rows):
        shown = name.removeprefix(POINTWISE_NAME)
        peaks = [found.cell(name, each, ["peak_mib"]) for each in (silu, silu_biased)]
        body.append([
            shown, found.cell(name, "batch", ["events"]),
            *(found.cell(name, each, TIMES) for each in (silu, silu_biased, softmax, softmax_biased, *SOFTMAX_PEERS,
                                                         "dense pointwise", "compiled pointwise")),
            others.cell(shown, QUOTED, TIMES),
            ratios(found.best(name, SOFTMAX_PEERS), found.times(name, silu)),
            ratios(found.times(name, softmax), found.times(name, silu)),
            ratios(found.times(name, silu_biased), found.times(name, silu)),
            ratios(found.times(name, softmax_biased), found.times(name, softmax)), ", ".join(peaks)])
    return figures.table(head, body)


def host_times(rows: list[Row]) -> str:
    """Return the table of the host's time a call of the smallest case."""
    found = Found(rows)
    metrics = ["host_forward_us", "host_forward_backward_us"]
    body = [[name, found.cell(SMALLEST.name, name, metrics)] for name in (OURS, *found.peers)]
    return figures.table(["host µs a call, B = 1, T = 64", "forward / forward and backward"], body)


def _of(names: Iterable[str], rows: list[Row]) -> list[Row]:
    """Return the rows of these workloads, in their order."""
    wanted = list(names)
    return sorted((row for row in rows if row["workload"] in wanted), key=lambda row: wanted.index(row["workload"]))


def _told(quoted: list[Row]) -> list[str]:
    """Say where quoted figures come from, a line each."""
    return sorted({f"- quoted, {row['command']}: {row['device']}; " + ", ".join(
        f"{name} {value}" for name, value in row["versions"].items()) for row in quoted})


def block(rows: list[Row], quoted: list[Row]) -> str:
    """Return all tables of plain attention that rows allow, and where they come from."""
    own = _of([*(workload.name for workload in WORKLOADS), CROWD.name], rows)
    beside = _of(dict.fromkeys(row["workload"] for row in own), quoted)
    targets, smallest = _of((workload.name for workload in TARGETS), rows), _of([SMALLEST.name], rows)
    parts = [comparison(own, beside)] if own else []
    parts += [comparison(targets, [])] if targets else []
    parts += [host_times(smallest)] if smallest else []
    if not parts:
        return "Not measured yet."
    return "\n\n".join([*parts, "\n".join([figures.origin([*own, *targets, *smallest]), *_told(beside)])])


def pointwise_block(rows: list[Row], quoted: list[Row]) -> str:
    """Return the table of pointwise weights and bias, and where it comes from."""
    own = _of((workload.name for workload in [*POINTWISE, *LENGTHS]), rows)
    if not own:
        return "Not measured yet."
    measured = {row["workload"].removeprefix(POINTWISE_NAME) for row in own}
    beside = [row for row in quoted if row["implementation"] == QUOTED and row["workload"] in measured]
    return "\n\n".join([pointwise(own, beside), "\n".join([figures.origin(own), *_told(beside)])])


def filled(page: str, ledger: Path) -> str:
    """Return the page with its blocks of figures made from a file of rows, and from quoted ones beside it."""
    rows, quoted = figures.read(ledger), figures.read(ledger.with_name("attention-quoted.json"))
    for (start, end), make in ((_MARKS, block), (_POINTWISE_MARKS, pointwise_block)):
        page = figures.between(page, start, end, make(rows, quoted))
    return page


def fill(ledger: Path) -> None:
    """Fill the tables of README.md from a file of rows."""
    README.write_text(filled(README.read_text(encoding="utf-8"), ledger), encoding="utf-8")
