"""The benchmark of `lookup`: a check that can fail, rows, the table."""

import math

import pytest
import torch

from serrate.ops import figures
from serrate.ops.lookup import bench
from serrate.ops.lookup.cases import CASES, WORKLOADS

SMALL = [case for case in CASES if case.name in ("several", "sums", "means of bags")]

every_shape = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


@every_shape
def test_a_right_answer_passes(case):
    assert bench.wrong(case, case.tensors(torch.float32), "reference") < bench.TOLERANCE[torch.float32]


@every_shape
@pytest.mark.parametrize("by", [0.1, math.nan])
@pytest.mark.parametrize("of_gradient", [False, True])
def test_a_wrong_output_or_gradient_is_found(case, of_gradient, by, monkeypatch):
    right = bench.lookup

    def spoil(table, rows, **options):
        out = right(table, rows, **options)
        if table.dtype == torch.float64:
            return out
        return out + by * (table.sum() - table.detach().sum()) if of_gradient else out * (1 + by)

    monkeypatch.setattr(bench, "lookup", spoil)
    assert not bench.wrong(case, case.tensors(torch.float32), "reference") < bench.TOLERANCE[torch.float32]


def test_a_wrong_answer_tells_no_speed(monkeypatch):
    monkeypatch.setattr(bench, "wrong", lambda *_: math.nan)
    with pytest.raises(AssertionError, match=f"{SMALL[0].name}, reference: relative error nan, more than"):
        bench.compare(SMALL[0], "cpu", "reference")


def test_rows_become_a_table(monkeypatch, tmp_path):
    rows = bench.compare(SMALL[0], "cpu", "reference")
    assert {"batch", "reference", "eager"} <= {row["implementation"] for row in rows}
    assert all(row["value"] > 0 and row["subject"] == "lookup" for row in rows)
    path = tmp_path / "rows.json"
    figures.write(path, rows)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- GPU figures -->\n<!-- end of GPU figures -->\n")
    bench.main(["--table", str(path)])
    assert f"\n| {SMALL[0].name} | " in bench.README.read_text()


def test_the_readme_has_a_place_for_the_table():
    assert bench.README.read_text().count("<!-- GPU figures -->") == 1


def test_a_program_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no part wide; there are "):
        bench.main(["wide"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        bench.main([])


def test_workloads_have_names_of_their_own():
    assert len({case.name for case in WORKLOADS}) == len(WORKLOADS)
