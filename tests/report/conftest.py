"""Sample runs, and a headless Chromium spoken to over a pipe (no port, no driver)."""

import base64
import fcntl
import json
import math
import os
import random
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serrate.run_folder import RunFolder

FLAGS = [
    "--headless",
    "--no-sandbox",  # tests may run as root, where the sandbox refuses to start
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """One Chromium process; `call` sends a command of the DevTools protocol and returns its answer."""

    def __init__(self, program: str, profile: Path):
        child_reads, self._out = os.pipe()
        self._in, child_writes = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4: keep ours out of their way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_reads, child_writes)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (child_reads, child_writes, *ends):
            os.close(end)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Load the page in a window of `width` and wait for it; `events` are of this page alone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[dict[str, Any]]:
        """Return what the page has put on the console, thrown or failed to load."""
        kinds = {
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.loadingFailed",
        }
        return [event for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Return every address that was asked for."""
        sent = (event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [each["request"]["url"] for each in sent]

    def screenshot(self, to: Path, **options: Any) -> None:
        """Write the whole page as PNG, for eyes."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **options)
        to.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        limit = time.monotonic() + 30
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, limit - time.monotonic()))
            received = os.read(self._in, 1 << 20) if ready else b""
            assert received, "Chromium has ended or does not answer"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    if program is None:
        pytest.skip("no headless Chromium: neither the CHROMIUM variable nor the PATH names it")
    opened = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a sample run; what is given replaces the sample, `...` leaves the file out."""

    def make(*, config: Any = None, metrics: Any = None, log: Any = None) -> Path:
        folder = RunFolder(tmp_path / "run")
        folder.write_config(sample_config() if config is None else config)
        if metrics is not ...:
            folder.write_metrics(sample_metrics() if metrics is None else metrics)
        if log is not ...:
            lines = (json.dumps(record) + "\n" for record in (sample_log() if log is None else log))
            folder.log_path.write_text("".join(lines))
        return folder.path

    return make


@pytest.fixture
def sample() -> SimpleNamespace:
    """What `make_run` writes: `config`, `metrics` and `log`, fresh, to be changed at will."""
    return SimpleNamespace(config=sample_config(), metrics=sample_metrics(), log=sample_log())


def sample_config() -> dict[str, Any]:
    return {
        "serrate_version": "0.1.0",
        "seed": 7,
        "data": {
            "columns": {"user": "user", "item": "item", "time": "time"},
            "filter": None,
        },
        "split": {"kind": "leave-last-two-out"},
        "model": {
            "kind": "transformer",
            "width": 128,
            "blocks": 2,
            "heads": 2,
            "max_length": 200,
            "dropout": 0.2,
        },
        "loss": {"kind": "full-softmax"},
        "train": {"epochs": 60, "learning_rate": 0.001, "tokens_per_batch": 16384, "patience": 8, "monitor": "ndcg@10"},
        "evaluate": {"cutoffs": [10, 50], "exclude_seen": True, "confidence": 0.95, "resamples": 1000},
        "dataset": {
            "format_version": 1,
            "source": "ml-1m",
            "num_users": 6040,
            "num_items": 3706,
            "num_events": 1000209,
            "mean_length": 165.597,
            "longest": 2314,
            "time_unit": "seconds",
        },
    }


def sample_log(epochs: int = 24, steps: int = 62) -> list[dict[str, Any]]:
    draw = random.Random(1)
    log: list[dict[str, Any]] = [{"event": "start", "device": "cpu", "parameters": 892_288}]
    best = 0.0
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            loss = 5.3 + 2.9 * math.exp(-step / 260) + draw.gauss(0, 0.05)
            log.append({"event": "step", "epoch": epoch, "step": step, "loss": loss, "learning_rate": 1e-3,
                        "events_per_second": 41000 + draw.gauss(0, 900), "seconds": step * 0.4})  # fmt: skip
        ndcg = 0.163 * (1 - math.exp(-epoch / 5)) - 0.0006 * max(0, epoch - 16) + draw.gauss(0, 0.0012)
        metrics = {"ndcg@10": ndcg, "hr@10": ndcg * 1.77, "hr@50": ndcg * 3, "mrr": ndcg * 0.83}
        log.append({"event": "validation", "epoch": epoch, "step": epoch * steps, "metrics": metrics,
                    "best": ndcg > best})  # fmt: skip
        best = max(best, ndcg)
    return [*log, {"event": "end", "epoch": epochs, "stopped_early": True}]


MOVIES = [
    "Toy Story (1995)", "Bug's Life, A (1998)", "Matrix, The (1999)", "Silence of the Lambs, The (1991)",
    "Star Wars: Episode V - The Empire Strikes Back (1980)", "Crouching Tiger, Hidden Dragon (2000)",
    "Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb (1963)", "千と千尋の神隠し (2001)",
    "Amélie (2001)", "Jurassic Park (1993)", "Sixth Sense, The (1999)", "Being John Malkovich (1999)",
    "Fargo (1996)", "Groundhog Day (1993)", "L.A. Confidential (1997)", "Raiders of the Lost Ark (1981)",
    "Braveheart (1995)", "Princess Bride, The (1987)", "American Beauty (1999)", "شهرزاد (2015)",
]  # fmt: skip


def sample_metrics() -> dict[str, Any]:
    draw = random.Random(2)

    def estimate(value: float, spread: float = 0.011) -> dict[str, float]:
        return {"value": value, "low": value - spread, "high": value + spread}

    own = {"hr@10": 0.2871, "ndcg@10": 0.1625, "mrr": 0.1381, "recall@50": 0.561, "coverage@10": 0.78}
    shares = {"transformer": 1.0, "Markov": 0.62, "item-kNN": 0.41, "popularity": 0.14}
    rows = [
        {
            "model": model,
            "split": split,
            "metrics": {name: estimate(value * share) for name, value in own.items()},
        }
        for split in ("validation", "test")
        for model, share in shares.items()
    ]
    comparisons = [
        {
            "model": "transformer",
            "baseline": baseline,
            "metric": metric,
            **estimate(own[metric] * (1 - shares[baseline])),
        }
        for metric in ("hr@10", "ndcg@10")
        for baseline in ("Markov", "item-kNN", "popularity")
    ]
    comparisons.append({"model": "transformer", "baseline": "Markov", "metric": "mrr", **estimate(0.004)})
    users = [0, 0, 0, 0, 812, 1480, 1494, 1104, 733, 341, 75, 1]
    items = [{"id": 100 + at, "title": title} for at, title in enumerate(MOVIES)]
    samples = []
    for user in range(10):
        drawn = draw.sample(items, 20)
        recommended = [{**item, "score": 9.1 - 0.37 * at} for at, item in enumerate(draw.sample(items, 10))]
        samples.append({"user": 17 * user + 5, "history": drawn[: 4 + 2 * user], "recommended": recommended,
                        "truth": [draw.choice(items)]})  # fmt: skip
    return {
        "examples": {"validation": 6040, "test": 6040},
        "warnings": ["leave-last-two-out: 31 % of the training events are later than the first test event."],
        "rows": rows,
        "comparisons": comparisons,
        "lengths": {
            "histogram": [{"from": 2**at, "to": 2 ** (at + 1) - 1, "users": n} for at, n in enumerate(users)],
            "mean": 165.6,
            "longest": 2314,
            "padding_avoided": 0.312,
        },
        "samples": samples,
    }
