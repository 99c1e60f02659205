"""These tests compile kernels for GPUs that need not be there; they run wherever Triton does not interpret."""

import importlib.util
import os

import pytest

MISSING = (
    "needs triton"
    if importlib.util.find_spec("triton") is None
    else "needs a process without TRITON_INTERPRET"
    if os.environ.get("TRITON_INTERPRET") == "1"
    else None
)


class Skipped(pytest.Module):
    """A module that is not imported."""

    def collect(self):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None
