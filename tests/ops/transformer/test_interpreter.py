"""The Triton kernels on the CPU: the suite under Triton's interpreter, in a process of its own.

The interpreter is chosen when Triton is imported. Its products of bfloat16 are wrong, so float16 alone is tried.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from serrate.ops.transformer.cases import CASES

SUITE = Path(__file__).with_name("test_transformer.py")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no package for this system")
def test_the_kernels_pass_the_suite():
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider",
               str(SUITE), "-k", "triton and not cuda and not float64 and not bfloat16 and not float32 and not wider"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()[-1]
    assert "skipped" not in told, told  # the interpreter did serve
    assert int(told.split(" passed")[0].split()[-1]) >= len(CASES), told
