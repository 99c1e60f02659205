"""What `pip install` brings: dependencies, pins, data files, the command, the licence."""

import ast
import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from importlib.metadata import entry_points, metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import specdec
from tests.project import ROOT, package_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIRED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
OPTIONAL = [Requirement(line) for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
PINS = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}
# triton comes with CUDA builds of torch (see pyproject.toml); only tests ask for it elsewhere.
UNDECLARED = {"triton"}
SLOW = {"datasets", "matplotlib", "pyarrow"}
# The text of apache.org/licenses/LICENSE-2.0.txt, its appendix not yet filled in.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.parametrize("requirement", [*REQUIRED, *OPTIONAL], ids=str)
def test_every_dependency_has_a_lower_bound_and_a_pin_within_it(requirement):
    assert [bound.operator for bound in requirement.specifier] == [">="]
    assert requirement.name in UNDECLARED or requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_triton_is_neither_required_nor_pinned():
    assert "triton" not in {requirement.name for requirement in REQUIRED}
    assert "triton" not in PINS


def test_every_import_is_a_declared_dependency():
    """What takes long to import is imported where it is used, not with the module."""
    known = {"specdec", *sys.stdlib_module_names, *UNDECLARED, *(requirement.name for requirement in REQUIRED)}
    imported, deferred = set(), set()
    for path in package_files("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            found = imported if node in tree.body else deferred
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    assert imported - known == set()
    assert deferred - known == set()
    assert imported & SLOW == set() and deferred >= SLOW


def test_every_data_file_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    data = [path for path in package_files("*") if path.suffix != ".py"]
    left_out = [p for p in data if not any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)]
    assert left_out == []
    assert {".safetensors", ".json", ".md"} <= {path.suffix for path in data}


def test_the_version_is_written_once_per_reader():
    assert specdec.__version__ == PROJECT["project"]["version"]
    assert f"## [{specdec.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_installed_metadata_and_command():
    installed = metadata("specdec-toolkit")
    assert installed["Requires-Python"] == ">=3.11"
    assert installed["License-Expression"] == "Apache-2.0"
    (command,) = [e for e in entry_points(group="console_scripts") if e.name == "specdec"]
    module, name = command.value.split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    blank = text.replace("Copyright 2026 The specdec authors", "Copyright [yyyy] [name of copyright owner]")
    assert text != blank
    assert sha256(blank.encode()).hexdigest() == APACHE_2


def test_transformers_can_be_imported_at_the_root_of_the_repository():
    """The folder `kernels` there must not be taken for the package of that name."""
    code = "import transformers, importlib.util; assert importlib.util.find_spec('kernels').origin is None"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["make demo", "make test", "make lint"])
def test_the_makefile_has_the_targets_that_are_announced(name):
    assert re.search(rf"^{name.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
