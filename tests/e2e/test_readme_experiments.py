"""The README's experiment, command after command, on the embedded models; what takes minutes there is made smaller."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from specdec import cli
from tests.project import ROOT

SECTION = re.search(r"^## Experiments\n.*?(?=^## )", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group()
SMALLER = {
    "bench": "--num-prompts 1 --category story,code --max-new-tokens 8 --temperature 0 --batch-size 1",
    "profile": "--batch-sizes 1,2 --prompt-lengths 16,32 --widths 1,2,4 --context-lengths 32 --repeats 1",
}


def block(language):
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    return text


@pytest.mark.slow
def test_the_experiment_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(block("toml"))
    names = []
    for line in block("sh").splitlines():
        words = shlex.split(line, comments=True)[1:]
        names.append(words[0])
        finished = CliRunner().invoke(cli.app, [*words, *SMALLER.get(words[0], "").split()])
        assert finished.exit_code == 0, (line, finished.output)
    assert names == ["bench", "profile", "replay", "plan", "report"]
    summary = json.loads((tmp_path / "runs" / "first" / "summary.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert all(arm["label"] in page for arm in summary["arms"])
    assert page.count("<svg") >= 4
    kinds = [json.loads((tmp_path / f"{name}.json").read_text())["kind"] for name in ("profile", "replay", "plan")]
    assert kinds == ["profile", "replay", "plan"]
