"""What every test process shares: one thread, hypothesis without a deadline, slow tests only on request."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads, and for processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # two contended threads run 20 to 40 times slower than one each

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    slow = pytest.mark.skip(reason="slow; run with --run-slow")
    gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(gpu)
