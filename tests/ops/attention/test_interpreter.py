"""The Triton kernels on the CPU: the conformance suite's small cases under Triton's interpreter.

The interpreter is chosen when Triton is imported, so the cases run in a process of their own. Half precision is
float16, as products of bfloat16 are wrong there.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from serrate.ops.attention.cases import CASES

SUITE = Path(__file__).with_name("test_attention.py")
MOST = 120  # keys times heads: an interpreted case of this size takes one or two seconds
SMALL = [case for case in CASES if case.width <= 64 and case.heads * sum(case.kv_lengths or case.lengths) <= MOST]


pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no package for this system")


def interpreted(*arguments: str) -> str:
    """Return what pytest says with these arguments under the interpreter; all must pass, none be skipped."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *arguments], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout  # the interpreter did serve
    return done.stdout


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_small_cases_keep_the_numerics_promise(dtype):
    ids = [f"{SUITE}::test_named_cases_keep_the_numerics_promise[triton-{case.name}-{dtype}-cpu]" for case in SMALL]
    said = interpreted(*ids)
    assert f"{len(SMALL)} passed" in said, said


def test_tensors_that_hooks_save():
    interpreted(str(SUITE), "-k", "triton and cpu and laid_out_otherwise")


def test_extreme_scores_and_events():
    interpreted(str(SUITE), "-k", "triton and cpu and float16 and not bfloat16 and (extreme_scores or later_one)")


def test_pointwise_weights_and_bias():
    interpreted(str(SUITE.with_name("test_bias.py")), "-k", "triton and cpu and not bfloat16")


def test_tiles_that_search_and_planned_ones():
    interpreted(str(SUITE.parent / "triton" / "test_plan.py"))
