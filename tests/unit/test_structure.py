"""The shape of the project: who imports whom, how large things are, what is public, how the folders are linked."""

import ast
import os
import re
import sys
from types import ModuleType

import pytest

import specdec
from tests.project import FOLDERS, PACKAGE, ROOT, module_name, package_files

# What each layer may import of ours. A module of the package that is named nowhere here is core.
IMPORTS = {
    "kernels": {"kernels"},
    "core": {"core", "kernels"},
    "draft_models": {"core", "kernels", "draft_models"},
    "verifiers": {"core", "kernels", "verifiers"},
    "engine": {"core", "kernels"},
    "top": {"core", "kernels", "draft_models", "verifiers", "engine", "experiments", "top"},
    "experiments": {"core", "kernels", "draft_models", "verifiers", "engine", "experiments", "top"},
}
# With specdec/__init__.py.
TOP = {"methods", "generation", "exchange", "probe", "cli", "__main__"}  # and cli_*, a file per command
KERNEL_LIBRARIES = {"torch", "triton", *sys.stdlib_module_names}
DICTATED = {("specdec.generation", "__call__")}  # transformers calls it with these parameters
MAX_KERNEL_LINES = 100  # a kernel is one function: what it calls is compiled into it
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_PUBLIC_NAMES = 300, 40, 6, 12
SOURCES = package_files("*.py")
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def layer_of(module):
    names = module.split(".")
    if len(names) == 1 or names[1] in TOP or names[1].startswith("cli_"):
        return "top"
    return names[1] if names[1] in (*FOLDERS, "engine") else "core"


def imported_modules(tree, module, is_package):
    """(line, module or module.name) of every import in the tree, at any depth, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            names = module.split(".")
            kept = len(names) - node.level + is_package
            base = ".".join([*(names[:kept] if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, base, alias.name


def is_module(dotted):
    path = ROOT / dotted.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def import_errors(source, module, is_package=False):
    """One line per import that the direction of imports forbids."""
    layer, errors = layer_of(module), []
    for line, base, name in imported_modules(ast.parse(source), module, is_package):
        target = f"{base}.{name}" if base.split(".")[0] == "specdec" and is_module(f"{base}.{name}") else base
        top_level = target.split(".")[0]
        if top_level in FOLDERS:
            errors.append(f"{module}:{line}: {target} is imported by a bare name; write specdec.{target}")
        elif top_level != "specdec":
            if layer == "kernels" and top_level not in KERNEL_LIBRARIES:
                errors.append(f"{module}:{line}: kernels import {target}; they know torch and triton only")
        elif layer_of(target) not in IMPORTS[layer]:
            errors.append(f"{module}:{line}: {layer} imports {target}, which is {layer_of(target)}")
        elif name.startswith("_") and not name.endswith("__"):
            errors.append(f"{module}:{line}: the private name {name} of {target} is imported")
    return errors


def budget_errors(source, module):
    """One line per function that is too long or takes too much. Docstrings do not count."""
    errors = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        limit = MAX_KERNEL_LINES if is_kernel else MAX_FUNCTION_LINES
        if lines > limit:
            errors.append(f"{module}:{node.lineno}: {node.name} has {lines} lines, more than {limit}")
        parameters = [p.arg for p in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in parameters if name not in ("self", "cls")])
        if count > MAX_PARAMETERS and not is_exempt(node, module):
            errors.append(f"{module}:{node.lineno}: {node.name} takes {count} parameters, more than {MAX_PARAMETERS}")
    return errors


def is_exempt(function, module):
    """Launches take what their kernel takes, commands one parameter per option, callbacks what their caller passes."""
    if (module, function.name) in DICTATED:
        return True
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return layer_of(module) == "kernels" or any(".command(" in decorator for decorator in decorators)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path):
    errors = import_errors(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("specdec.kernels.planted", "from specdec.tree import TokenTree"),
        ("specdec.kernels.planted", "from ..tree import TokenTree"),
        ("specdec.kernels.planted", "import numpy as np"),
        ("specdec.cache", "from .engine import Engine"),
        ("specdec.cache", "from . import methods"),
        ("specdec.cache", "def later():\n    from .verifiers.greedy import Greedy"),
        ("specdec.cache", "import specdec.draft_models.ngram"),
        ("specdec.cache", "from specdec import generate"),
        ("specdec.cache", "from .experiments.corpus import Document"),
        ("specdec.zoo", "from ..cli import main"),
        ("specdec.draft_models.planted", "from specdec.verifiers.greedy import Greedy"),
        ("specdec.draft_models.planted", "from specdec.engine import Engine"),
        ("specdec.draft_models.planted", "from specdec.methods import DRAFTERS"),
        ("specdec.verifiers.planted", "from ..draft_models.ngram import NGram"),
        ("specdec.verifiers.planted", "from specdec import engine"),
        ("specdec.engine", "from .draft_models.ngram import NGram"),
        ("specdec.engine", "from .methods import method_of"),
        ("specdec.cli", "from kernels.ops import tree_attention"),
        ("specdec.cli", "import verifiers"),
        ("specdec.cli", "from .engine import _Live"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(import_errors(source, module, is_package=module == "specdec.zoo")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("specdec.kernels.planted", "import math\nimport torch\nimport triton.language as tl\nfrom . import reference"),
        ("specdec.cache", "from .kernels import ops\nfrom .tree import TokenTree\nimport numpy"),
        ("specdec.draft_models.planted", "from specdec import noise\nfrom specdec.kernels.ops import x"),
        ("specdec.engine", "from .protocols import Drafter"),
        ("specdec.methods", "from .draft_models.ngram import NGram\nfrom .verifiers.greedy import Greedy"),
        ("specdec.experiments.planted", "import specdec\nfrom specdec.engine import Engine\nfrom .corpus import x"),
        ("specdec", "from .generation import generate"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert import_errors(source, module, is_package=module == "specdec") == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_functions_keep_to_the_budget(path):
    errors = budget_errors(path.read_text(), module_name(path))
    assert not errors, "\n".join(errors)


def test_a_function_over_the_budget_is_found():
    parameters = ", ".join(f"p{i}" for i in range(MAX_PARAMETERS + 1))
    body = "\n".join(["    pass"] * MAX_FUNCTION_LINES)
    planted = f"class A:\n  def f(self, {parameters}): pass\n\ndef g():\n    '''One\n\n    two.'''\n{body}"
    errors = budget_errors(planted, "specdec.cache")
    assert [re.sub(r".*: ", "", error) for error in errors] == [
        "g has 41 lines, more than 40",
        "f takes 7 parameters, more than 6",
    ]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_finished(path):
    text = path.read_text()
    num_lines = len(text.splitlines())
    assert num_lines <= MAX_FILE_LINES
    assert not re.search(r"#\s*(TODO|FIXME|XXX)\b", text)
    assert path.stem not in {"utils", "util", "helpers", "misc", "legacy"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_linked_into_the_package_and_are_no_packages_themselves(name):
    link = PACKAGE / name
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name
    # With one, `import transformers` at the root of the repository would take `kernels` for Hugging Face's.
    assert not (ROOT / name / "__init__.py").exists()


def test_public_names_are_the_listed_ones():
    found = {name for name, value in vars(specdec).items() if not isinstance(value, ModuleType)}
    assert {name for name in found if not name.startswith("_")} == set(specdec.__all__)
    assert specdec.__all__ == sorted(specdec.__all__)
    assert len(specdec.__all__) <= MAX_PUBLIC_NAMES


@pytest.mark.parametrize("name", specdec.__all__)
def test_public_names_are_documented_and_shown_in_an_example(name):
    assert getattr(specdec, name).__doc__
    readme = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    docstrings = [line for path in SOURCES for line in re.findall(r"^ *(?:>>>|\.\.\.) (.*)", path.read_text(), re.M)]
    assert any(re.search(rf"\b{name}\b", example) for example in (*readme, *docstrings))
