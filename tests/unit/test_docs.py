"""Nothing is written that does not run: docstring examples, README code, the commands and files the pages name."""

import doctest
import importlib
import io
import re
import shlex

import pytest
import typer

from specdec import cli
from tests.project import ROOT, module_name, package_files

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MODULES = [module_name(path) for path in package_files("*.py")]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands():
    """Every command line of the pages: those of the shell blocks, and the `specdec ...` ones in running text."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            yield from (line.split("#")[0].strip() for line in block.splitlines() if line.strip())
        prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        yield from re.findall(r"`((?:specdec|make) [^`]+)`", prose)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        pytest.skip("needs triton")
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example, out=report.write)
    assert runner.failures == 0, report.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_python_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_exist(line):
    """Each command is parsed with its options, not run."""
    words = shlex.split(line)
    while "=" in words[0]:  # settings of the environment
        words = words[1:]
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert targets
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "specdec":
        command, words = typer.main.get_command(cli.app), words[1:]
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        # In running text a command is named alone, without what it requires.
        command.make_context(command.name, words, resilient_parsing=not words)
    else:
        assert words[0] in {"ruff", "mypy", "pytest", "pip", "git"}


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:specdec|draft_models|verifiers|kernels|experiments|tests)/[\w/.-]*)`", text)
    missing = [name for name in (*links, *paths) if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []
