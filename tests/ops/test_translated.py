"""Every kernel compiles for a GPU, as far as that can be told without one; see `translated.py`."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOMS = sorted(path.parts[-3] for path in Path(__file__).parents[2].glob("src/serrate/ops/*/triton/__init__.py"))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no package for this system")
@pytest.mark.parametrize("room", ROOMS)
def test_kernels_of_the_named_cases_can_be_translated(room):
    here = Path(__file__).parent
    suites = [str(path) for path in here.glob(f"{room}/test_*.py")
              if path.stem not in ("test_interpreter", "test_bench", "test_triton", "test_cpu")]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider",
               "-p", "translated", "--tb=no", "-q", "-rN", *suites,
               "-k", "triton and cpu and (named_cases or numerics) and not float64 and not float16"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(here)}, capture_output=True, text=True)
    assert "cannot be translated" not in done.stdout, done.stdout[-8000:]
    assert int(done.stdout.split("translated: ")[1].split()[0]) > 5, done.stdout + done.stderr
