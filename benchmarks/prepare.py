"""Preparing a log at scale: time and peak memory of the process tree, beside pandas and polars on a smaller log.

    python benchmarks/prepare.py                       # 100 million events; 10 million beside pandas and polars
    python benchmarks/prepare.py --events 10_000_000 --compare 1_000_000

Each implementation runs in a process of its own on two cores, start-up included, and writes the same arrays:
offsets, dense items (by frequency, ties by id) and times, stably sorted by (user, time). Figures are written only
when the arrays agree. The log is synthetic, made before the clock starts, in a folder that is removed at the end.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CORES = 2
PACKAGES = ("duckdb", "numpy", "pyarrow", "pandas", "polars")
ARRAYS = ("offsets.npy", "item.npy", "time.npy")
LEDGER = Path(__file__).parent / "prepare-cpu.json"


def prepare_with_serrate(log: Path, out: Path) -> None:
    """Ours, with the default memory limit."""
    from serrate.data import ColumnMapping, DataConfig, prepare

    prepare(log, DataConfig(columns=ColumnMapping(time="time"), threads=CORES), out)


def prepare_with_pandas(log: Path, out: Path) -> None:
    """The usual way in memory: frequencies, codes, one stable sort."""
    import pandas as pd

    frame = pd.read_parquet(log)
    counts = frame["item"].value_counts().reset_index().sort_values(["count", "item"], ascending=[False, True])
    frame["item"] = frame["item"].map(pd.Series(np.arange(len(counts), dtype=np.int32), index=counts["item"]))
    frame = frame.sort_values(["user", "time"], kind="stable")
    lengths = frame.groupby("user", sort=True).size()
    write(out, lengths.to_numpy(), frame["item"].to_numpy(dtype=np.int32), frame["time"].to_numpy())


def prepare_with_polars(log: Path, out: Path) -> None:
    """The same in polars."""
    import polars as pl

    frame = pl.read_parquet(log)
    counts = frame["item"].value_counts().sort(["count", "item"], descending=[True, False])
    dense = counts.select("item", dense=pl.int_range(pl.len(), dtype=pl.Int32))
    frame = frame.join(dense, on="item", maintain_order="left").sort("user", "time", maintain_order=True)
    lengths = frame.group_by("user", maintain_order=True).len()["len"]
    write(out, lengths.to_numpy(), frame["dense"].to_numpy(), frame["time"].to_numpy())


def write(out: Path, lengths: np.ndarray, item: np.ndarray, times: np.ndarray) -> None:
    """Write the arrays as ours are."""
    out.mkdir()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    for name, array in zip(ARRAYS, (offsets, item, times), strict=True):
        np.save(out / name, array)


IMPLEMENTATIONS = {"serrate": prepare_with_serrate, "pandas": prepare_with_pandas, "polars": prepare_with_polars}


def measure(implementation: str, log: Path, out: Path) -> tuple[float, float]:
    """Run one implementation in a child process; return (seconds, peak MiB of the process tree)."""
    import psutil

    threads = {name: str(CORES) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    started, peak = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, __file__, "--child", implementation, str(log), str(out)],
                             env={**os.environ, **threads})
    watched = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            tree = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(process.memory_info().rss for process in tree))
        except psutil.NoSuchProcess:
            pass  # it ended in between
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{implementation} failed with exit code {child.returncode}")
    return seconds, peak / 2**20


def agree(one: Path, other: Path) -> bool:
    """Whether two prepared folders hold the same arrays."""
    return all(np.array_equal(np.load(one / name, mmap_mode="r"), np.load(other / name, mmap_mode="r"))
               for name in ARRAYS)


def main() -> None:
    """Measure, print a table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--compare", type=int, default=10_000_000, help="events of the run beside pandas and polars")
    parser.add_argument("--folder", type=Path, help="where logs and outputs go (default: the temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=LEDGER)
    parser.add_argument("--child", nargs=3, metavar=("IMPLEMENTATION", "LOG", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        implementation, log, out = arguments.child
        IMPLEMENTATIONS[implementation](Path(log), Path(out))
        return
    import ledger

    from serrate.data import synthesize

    rows = []
    with tempfile.TemporaryDirectory(prefix="serrate-prepare-", dir=arguments.folder) as folder:
        for events, implementations in ((arguments.compare, list(IMPLEMENTATIONS)), (arguments.events, ["serrate"])):
            log = synthesize(Path(folder) / f"{events}.parquet", events, seed=arguments.seed)
            with open(log, "rb") as file:  # into the page cache, the same for everyone
                while file.read(1 << 24):
                    pass
            for implementation in implementations:
                out = Path(folder) / f"{implementation}-{events}"
                seconds, peak = measure(implementation, log, out)
                if not agree(Path(folder) / f"serrate-{events}", out):
                    raise SystemExit(f"{implementation} and serrate do not agree on {events} events: no figures")
                print(f"{events:>12,} events  {implementation:<8} {seconds:7.1f} s  {events / seconds / 1e6:5.2f} M/s  "
                      f"{peak:7.0f} MiB", flush=True)
                for metric, value, unit in (("prepare_s", seconds, "s"), ("events_per_second", events / seconds, "1/s"),
                                            ("peak_mib", peak, "MiB")):
                    rows.append(ledger.row("prepare", f"synthetic-{events}", implementation, metric, round(value, 2),
                                           unit, arguments.seed, PACKAGES))
            log.unlink()
    ledger.write(arguments.out, rows)


if __name__ == "__main__":
    main()
