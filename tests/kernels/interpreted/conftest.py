"""These tests run in a process of their own, where Triton interprets its kernels: TRITON_INTERPRET=1 pytest <here>."""

import importlib.util
import os

import pytest

from tests.toys import interpreter

MISSING = (
    "needs triton"
    if importlib.util.find_spec("triton") is None
    else "needs its own process: TRITON_INTERPRET=1 pytest tests/kernels/interpreted"
    if os.environ.get("TRITON_INTERPRET") != "1"
    else None
)


class Skipped(pytest.Module):
    """A module that is not imported."""

    def collect(self):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(autouse=True)
def repaired(monkeypatch):
    interpreter.repair(monkeypatch)
