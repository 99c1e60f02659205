"""Two folders here want a process of a certain kind; elsewhere they are skipped without being imported.

Triton decides for good, when kernels are imported, whether it interprets them: TRITON_INTERPRET=1 pytest <interpreted>.
"""

import importlib.util
import os

import pytest

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
UNFIT = {  # folder -> why this process does not do
    "interpreted": None if INTERPRETS else "needs its own process: TRITON_INTERPRET=1 pytest tests/kernels/interpreted",
    "compiled": "needs a process without TRITON_INTERPRET" if INTERPRETS else None,
}
if importlib.util.find_spec("triton") is None:
    UNFIT = dict.fromkeys(UNFIT, "needs triton")


class Skipped(pytest.Module):
    """A module that is not imported."""

    def collect(self):
        pytest.skip(UNFIT[self.path.parent.name], allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if UNFIT.get(module_path.parent.name) else None
