"""What every test starts from: no network, one thread, the same seeds; GPU tests are skipped where there is no GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read on import of huggingface_hub, so it stands before everything that imports it
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# Several test processes share the cores, and tiny tensors gain nothing from threads.
torch.set_num_threads(1)
# Examples are derived from the test itself: a failure is found again, here and in CI. Time is not what is tested.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_setup():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    """The folder of larger models and texts beside the checkout; tests that want it are skipped without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder
