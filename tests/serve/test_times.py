"""Requests to a model that reads times: held to its scores for a batch made by hand."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import DataConfig, prepare
from serrate.errors import InvalidArgument, InvalidData
from serrate.jagged import EventBatch, JaggedTensor
from serrate.serve import batch as batch_module
from serrate.serve import predictor as predictor_module
from serrate.serve import recommend_file

START = 893_246_400  # 1998-04-22, noon
HISTORIES = [[101, 102, 103], [120], [105, 999, 106, 998], [110, 111, 112, 113, 114, 115, 116]]
SINCE = [[0, 60, 90_000], [7], [0, 10, 2000, 3000], [0, 1, 2, 300, 4000, 50_000, 50_010]]
TIMES = [[START + time for time in row] for row in SINCE]


def by_hand(predictor, items, times, asked, k):
    """The best `k` raw ids: scores of one row, whose events are asked at the next one and the newest at `asked`."""
    known = [(item - 100, time) for item, time in zip(items, times, strict=True) if 100 <= item < 130]
    newest = known[-predictor.model.config.max_length:]
    happened = [time for _, time in newest]
    fields = {"item": [item for item, _ in newest], "time": happened, "asked": [*happened[1:], asked]}
    length = torch.tensor([len(newest)])
    batch = EventBatch({name: JaggedTensor.from_lengths(torch.tensor(row), length) for name, row in fields.items()})
    with torch.no_grad():
        scores = predictor.model.score(batch)[0]
    seen = {item for item, _ in known}
    order = sorted(range(30), key=lambda item: (-float(scores[item]), item))
    return [100 + item for item in order if item not in seen][:k]


def ids_of(answers):
    return [answer.ids for answer in answers]


def expected(timed, asked, k=6):
    return [by_hand(timed, items, times, at, k) for items, times, at in zip(HISTORIES, TIMES, asked, strict=True)]


def test_without_a_word_the_answer_is_asked_for_at_the_newest_event(timed):
    newest = [row[-1] for row in TIMES]  # known to the model or not
    assert ids_of(timed.recommend(HISTORIES, k=6, times=TIMES)) == expected(timed, newest)


@pytest.mark.parametrize("asked", [START + 10**8, [START + 90_000, START + 10**6, START + 10**7, START + 10**8]],
                         ids=["one for all", "one each"])
def test_when_the_answer_is_asked_for_counts(asked, timed):
    found = ids_of(timed.recommend(HISTORIES, k=6, times=TIMES, asked=asked))
    assert found == expected(timed, asked if isinstance(asked, list) else [asked] * 4)
    assert found != ids_of(timed.recommend(HISTORIES, k=6, times=TIMES))


@pytest.mark.parametrize("unit", [
    lambda time: time * 1000 + 999, lambda time: time * 10**9, lambda time: time + 0.5,
    lambda time: datetime.fromtimestamp(time, UTC), lambda time: np.datetime64(time, "s")],
    ids=["milliseconds", "nanoseconds", "fractions", "dates", "NumPy"])
def test_times_in_any_unit(unit, timed):
    times, asked = [[unit(time) for time in row] for row in TIMES], unit(START + 10**7)
    assert timed.recommend(HISTORIES, times=times, asked=asked) == \
        timed.recommend(HISTORIES, times=TIMES, asked=START + 10**7)


def test_empty_histories_and_nobody(timed):
    assert ids_of(timed.recommend([[], [999]], k=3, times=[[], [START]])) == [[100, 101, 102]] * 2
    assert timed.recommend([], times=[]) == []


def test_chunks_do_not_show(timed, monkeypatch):
    whole = timed.recommend(HISTORIES * 5, times=TIMES * 5)
    monkeypatch.setattr(predictor_module, "_EVENTS_AT_A_TIME", 7)
    assert ids_of(timed.recommend(HISTORIES * 5, times=TIMES * 5)) == ids_of(whole)


@pytest.mark.parametrize(("options", "message"), [
    ({}, r"times: expected the times of each history, as the model reads them, got None"),
    ({"times": 5}, r"times: expected the times of each history"),
    ({"times": TIMES[:3]}, r"times: expected 4 lists, one a history, got 3"),
    ({"times": [[1], *TIMES[1:]]}, r"times: expected 3 times in list 0, as its history has events, got 1 times"),
    ({"times": [[1, 2, None], *TIMES[1:]]}, r"times: expected a time for each event, got null"),
    ({"times": [[3, 2, 4], *TIMES[1:]]}, r"times: expected the oldest event of a history first, got a decrease in hi"),
    ({"times": [["a", "b", "c"], *TIMES[1:]]}, r"times: expected whole numbers, seconds, dates or timestamps"),
    ({"times": TIMES, "asked": [1, 2]}, r"asked: expected one time, or 4, one a history, got 2 times"),
    ({"times": [[1, 2, 3], [START * 1000], *TIMES[2:]]}, r"times: expected whole numbers in one unit, which is told by "
        rf"their size, got 1 \(seconds\) and {START * 1000} \(milliseconds\)"),
    ({"times": TIMES, "asked": [TIMES[0][-1], 7 + START, START + 2000, START + 50_010]},
     r"asked: expected the time of the newest event or later, got 1,000 s before it in history 2"),
    ({"times": TIMES, "asked": "now"}, r"asked: expected whole numbers, seconds, dates or timestamps, got "),
])
def test_wrong_times_are_named(options, message, timed):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        timed.recommend(HISTORIES, **options)


def test_a_model_without_time_reads_none(predictor):
    assert predictor.recommend([[101]], times="no times at all", asked=[]) == predictor.recommend([[101]])


# --- whole files ---


def lists(path, times=TIMES, **columns):
    pq.write_table(pa.table({"history": HISTORIES, "times": times, **columns}), path)
    return path


def log(path, unit=1, **columns):
    """Single events, newest first."""
    rows = [(user, item, time * unit) for user, (items, times) in enumerate(zip(HISTORIES, TIMES, strict=True))
            for item, time in zip(items, times, strict=True)][::-1]
    pq.write_table(pa.table({**dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True)),
                             **columns}), path)
    return path


def served(timed, source, **options):
    out = source.parent / "out.parquet"
    recommend_file(timed, source, out, k=6, **options)
    return pq.read_table(out)["items"].to_pylist()


@pytest.mark.parametrize("asked", [None, START + 10**7])
def test_lists_and_logs_alike(asked, timed, tmp_path):
    rows = ids_of(timed.recommend(HISTORIES, k=6, times=TIMES, asked=asked))
    prepared = prepare(str(log(tmp_path / "log.parquet")), DataConfig.parse({"columns": {"time": "time"}}),
                       tmp_path / "prepared").path
    dates = pa.array([[time * 1000 for time in row] for row in TIMES], pa.list_(pa.timestamp("ms")))
    for source in (lists(tmp_path / "lists.parquet"), lists(tmp_path / "dates.parquet", dates),
                   tmp_path / "log.parquet", log(tmp_path / "milliseconds.parquet", 1000), prepared):
        assert served(timed, source, asked=asked) == rows, source.name


def test_each_user_may_ask_at_another_time(timed, tmp_path, monkeypatch):
    asked = [START + 10**n for n in (5, 6, 7, 8)]
    rows = ids_of(timed.recommend(HISTORIES, k=6, times=TIMES, asked=asked))
    assert served(timed, lists(tmp_path / "lists.parquet", asked=asked), asked=START) == rows
    monkeypatch.setattr(batch_module, "_ROWS_AT_A_TIME", 1)
    assert served(timed, lists(tmp_path / "lists.parquet", asked=asked)) == rows


@pytest.mark.parametrize(("columns", "message"), [
    ({"times": [1, 2, 3, 4]}, r"lists\.parquet: the model reads times: expected a list of them .*'times', got int64"),
    ({"times": [TIMES[0], TIMES[1], None, TIMES[3]]}, r"lists\.parquet: expected 4 times in row 3, one an item, got 0"),
    ({"times": [TIMES[0], TIMES[1], [4, 3, 2, 1], TIMES[3]]}, r"lists\.parquet: times: .* a decrease in history 3"),
    ({"asked": [1, 2, None, 4]}, r"lists\.parquet: asked: expected a time for each event, got null"),
    ({"asked": [START + 90_000, START + 7, START + 3000, START]}, r"asked: .* 50,010 s before it in history 4"),
])
def test_lists_with_wrong_times(columns, message, timed, tmp_path):
    with pytest.raises(InvalidData, match=message):
        served(timed, lists(tmp_path / "lists.parquet", **columns))
    assert not (tmp_path / "out.parquet").exists()


def test_a_log_that_goes_on_after_it_is_asked_about(timed, tmp_path):
    source = log(tmp_path / "log.parquet")
    assert len(served(timed, source, asked=START + 90_000)) == 4
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(InvalidArgument, match=r"^asked: .* 1 s before it in history 1$"):
        served(timed, source, asked=START + 89_999)
    assert not (tmp_path / "out.parquet").exists()


def test_sources_without_times(timed, predictor, tmp_path):
    pq.write_table(pa.table({"history": HISTORIES}), tmp_path / "lists.parquet")
    with pytest.raises(InvalidData, match=r"the model reads times: expected .* got no such column"):
        served(timed, tmp_path / "lists.parquet")
    assert served(predictor, tmp_path / "lists.parquet") == ids_of(predictor.recommend(HISTORIES, k=6))
    with pytest.raises(InvalidData, match=r"the model reads times, and this log has none \(columns\.time\)"):
        served(timed, log(tmp_path / "log.parquet"), config=DataConfig())
