"""What one command writes is what the next one reads: a real folder of bench, its trace, a profile, plans, a report."""

import json

import pytest
from typer.testing import CliRunner

from specdec import cli
from specdec.experiments.bench.store import SUMMARY, read_header, sealed
from specdec.experiments.figures.summary import summarize_folder
from specdec.experiments.loading import load_models
from specdec.experiments.profile import machine
from specdec.experiments.prompts import read_prompts
from specdec.experiments.trace.schema import write_trace
from specdec.experiments.trace.tracing import Tracing, trace_arm
from specdec.methods import paged

NEW_TOKENS = 12


def run(folders, root, line):
    """A command on the tiny models; its words that begin with @ are files of theirs, with # results of others."""
    words = [word.replace("@", f"{folders}/").replace("#", f"{root}/") for word in line.split()]
    finished = CliRunner().invoke(cli.app, words)
    assert finished.exit_code == 0, finished.output
    return finished


def traced(folders, path):
    """A trace of the drafts of 3 tokens by the draft model on the same prompts."""
    models = load_models(f"{folders}/target", f"{folders}/draft", "float32", "cpu")
    prompts = read_prompts(folders / "prompts.jsonl")
    drafter = {"method": "draft_model", "model": models.draft, "num_speculative_tokens": 3}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    encoded = [models.encode(prompt.text) for prompt in prompts]
    table = trace_arm(paged(models.target), drafter, "greedy", Tracing(options), encoded)
    names = json.dumps([prompt.id for prompt in prompts])
    write_trace(path, table, {"arm": "12ab", "label": "draft_model k=3", "prompts": names})


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    """Two benchmarks, a trace replayed, a profile and two plans, as the commands write them."""
    root = tmp_path_factory.mktemp("results")
    models = "--target @target --draft @draft --dtype float32"
    bench = f"bench {models} --prompts @prompts.jsonl --max-new-tokens {NEW_TOKENS}"
    run(folders, root, f"{bench} --out #a --drafter ngram,draft_model --num-speculative-tokens 2,3")
    run(folders, root, f"{bench} --out #b --seed 1 --drafter ngram --num-speculative-tokens 3")
    traced(folders, root / "t.parquet")
    run(folders, root, "replay #t.parquet --num-speculative-tokens 2,3 --json #replay.json")
    sizes = "--prompt-lengths 4 --batch-sizes 1 --context-lengths 12 --widths 1,3 --draft-lengths 2,3 --repeats 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PRODUCT_SIZES", {"cpu": (32, 64)})
        patch.setattr(machine, "cache_defeating_bytes", lambda: 1 << 20)
        run(folders, root, f"profile {models} {sizes} --tree-nodes 0 --json #profile.json")
    run(folders, root, "plan --profile #profile.json --acceptance #a --json #plan.json")
    run(folders, root, "plan --profile #profile.json --acceptance #replay.json --json #plan-of-replay.json")
    return root


def loaded(path):
    return json.loads(path.read_text())


def arms_of(folder):
    return {arm["label"]: arm["overall"] for arm in summarize_folder(folder)["arms"]}


def test_a_replay_says_what_the_bench_counted(results):
    found = arms_of(results / "a")
    for row in loaded(results / "replay.json")["rows"]:
        live = found[f"draft_model k={row['num_speculative_tokens']}"]
        for name in ("num_tokens", "num_steps"):
            assert row[name] == pytest.approx(live[name])
        assert row["tokens_per_step"] == pytest.approx(live["tokens_per_step"]["value"])


def test_a_plan_has_the_acceptance_of_the_bench_and_of_the_replay(results):
    found = arms_of(results / "a")
    plan = loaded(results / "plan.json")
    rows = {row["label"]: row for row in plan["rows"]}
    assert set(found) == {"plain", *(f"{name} k={k}" for name in ("ngram", "draft_model") for k in (2, 3))}
    assert plan["acceptance"].startswith(str(results / "a"))
    for label, figures in found.items():
        row, firsts = rows[label], figures["num_requests"]
        wanted = (figures["num_tokens"] - firsts) / (figures["num_steps"] - firsts)  # behind the prompts' own steps
        assert row["tokens_per_step"] == pytest.approx(wanted)
    replayed = loaded(results / "plan-of-replay.json")["rows"]
    assert {row["label"] for row in replayed} == {"plain", "draft_model k=2", "draft_model k=3"}
    for row in replayed:
        assert row["tokens_per_step"] == pytest.approx(rows[row["label"]]["tokens_per_step"])


def page_of(folders, results, tmp_path, names):
    finished = run(folders, results, f"report {' '.join(f'#{name}' for name in names)} --out {tmp_path}/r.html")
    return finished, (tmp_path / "r.html").read_text()


def test_a_report_shows_all_of_it(folders, results, tmp_path):
    names = ("a", "b", "replay.json", "profile.json", "plan.json", "plan-of-replay.json")
    finished, page = page_of(folders, results, tmp_path, names)
    assert finished.stderr == "" and "Left out" not in page
    assert "set b / set a, 3 prompts of both" in finished.stdout
    titles = [f"<h2>{kind}: {results}/{name}" for kind, name in (("Benchmark", "a"), ("Benchmark", "b"))]
    titles.append(f"<h2>Two benchmarks compared: {results}/b against {results}/a</h2>")
    titles += [f"<h2>{kind}: {results}/{kind.lower()}.json</h2>" for kind in ("Profile", "Plan", "Replay")]
    places = [page.rindex(title) for title in titles]
    assert places == sorted(places)
    assert "all 12 texts are token for token those of plain decoding" in page  # 4 arms on 3 prompts
    assert "seed: 0 → 1" in page and "only in the first" in page


def test_what_has_no_records_is_shown_and_not_compared(folders, results, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / SUMMARY).write_text(json.dumps(summarize_folder(results / "b")))
    finished, page = page_of(folders, results, tmp_path, ("a", f"../{tmp_path.name}/s"))
    assert "no comparison" in finished.stderr and "is a summary without its records" in page
    assert "Two benchmarks compared" not in page and page.count("Which drafter?") == 2


def test_records_count_that_are_newer_than_the_summary(results, tmp_path):
    """As after a kill: the folder has a summary of fewer runs."""
    folder = tmp_path / "killed"
    folder.mkdir()
    for path in (results / "a").glob("*.json*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / SUMMARY).write_text(json.dumps({"kind": "bench-summary", "version": 1, "arms": []}))
    line = f"plan --profile {results}/profile.json --acceptance {folder} --json {tmp_path}/plan.json"
    assert CliRunner().invoke(cli.app, line.split()).exit_code == 0
    assert loaded(tmp_path / "plan.json")["rows"] == loaded(results / "plan.json")["rows"]


def test_a_folder_whose_runs_drafted_nothing_is_refused_in_a_line(results, tmp_path):
    header = read_header(results / "a")
    (tmp_path / "bench.json").write_text(json.dumps(header))
    (tmp_path / "records-0.jsonl").write_bytes(sealed({"arm": "gone"}))
    finished = CliRunner().invoke(cli.app, f"plan --acceptance {tmp_path}".split())
    assert finished.exit_code == 1 and len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("error: expected drafters with drafts in")
