"""Kernels as Triton's interpreter runs them, with its faults repaired."""

import pytest

from tests.toys import interpreter


@pytest.fixture(autouse=True)
def repaired(monkeypatch):
    interpreter.repair(monkeypatch)
