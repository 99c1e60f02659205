"""The system benchmark, dry: what is measured, what may fail, going on, and what the rows come to."""

import json
import math
import time

import pytest
import torch

from specdec.events import Round, Seconds, Step
from specdec.experiments import system_bench, system_bench_subject, system_bench_texts
from specdec.experiments.bench_results import state_of
from specdec.experiments.shapes import TINY
from specdec.experiments.system_bench import Results, Unit, units
from specdec.experiments.system_bench_passes import chain_of, commit_rows, prefixes, score_rows, tree_of
from specdec.experiments.system_bench_subject import COMPILED, DRY, REAL, Subject
from specdec.experiments.system_bench_texts import MAY_FAIL, THEIRS, THEIRS_STATIC, interleaved, laps, replay_rows
from specdec.experiments.system_bench_view import GOALS, figures, table
from tests.toys.recorded import recording  # noqa: F401 - a fixture

CPU = torch.device("cpu")
EAGER, CAPTURED = "specdec eager", "specdec captured"


@pytest.fixture(scope="module")
def subject():
    return Subject(TINY, CPU, DRY, ceiling=10.0)


def run(path, **options):
    system_bench.main(path, **{"dry": True, "again": False, "time_limit": math.inf, **options})
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_dry_run_measures_all_that_a_cpu_can(tmp_path, capsys):
    began = time.monotonic()
    found = run(tmp_path / "bench.json")
    assert time.monotonic() - began < 120
    assert found["complete"] and found["dry"] and "say nothing" in found["note"]
    assert found["absent"][CAPTURED] == "needs a GPU" and set(found["absent"]) == {CAPTURED, "specdec compiled"}
    names = [(row["unit"], row["name"]) for row in found["rows"]]
    assert names[:2] == [("decoding", EAGER), ("decoding", THEIRS)]
    assert names[-2:] == [("static cache", EAGER), ("static cache", THEIRS_STATIC)]
    assert found["rows"][-1]["is_compiled"] is False, "transformers compiles on a GPU only"
    assert {row["shape"] for row in found["rows"]} == {TINY} and all("ms" in row for row in found["rows"])
    assert all(row.get("same_text", True) for row in found["rows"])
    assert {unit for unit, _ in names} == {unit.name for unit in units(DRY)} - {"torch.compile"}
    assert {each["state"] for each in found["figures"]} == {"not measured"}
    assert found["settings"] == DRY._asdict() and found["runs"][0]["environment"]["torch"]
    assert {"ms", "share", "ratio", "formula", "waits", "same_text"} <= set(found["definitions"])
    printed = capsys.readouterr().out
    assert "DRY RUN" in printed and "(goal >= 0.95: not measured)" in printed
    run(tmp_path / "bench.json")
    again = json.loads((tmp_path / "bench.json").read_text())
    assert again["rows"] == found["rows"] and again["complete"], "all was there"


@pytest.fixture
def planted(monkeypatch):
    """Two units that take no time; the second one's other contender fails as often as it is told."""
    told = {"failures": 1, "measured": []}

    def first(subject):
        told["measured"].append("first")
        return [{"name": EAGER, "ms": 2.0, "share": 0.5, "same_text": True}]

    def second(subject):
        told["measured"].append("second")
        told["failures"] -= 1
        other = {"failed": "no compiler"} if told["failures"] >= 0 else {"ms": 3.0, "share": 0.4, "same_text": True}
        return [{"name": EAGER, "ms": 1.0, "share": 0.9, "same_text": True}, {"name": THEIRS_STATIC, **other}]

    monkeypatch.setattr(system_bench, "units", lambda sizes: [Unit("decoding", first), Unit("static cache", second)])
    return told


def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path, planted, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, *[0.0] * 99])
    monkeypatch.setattr(system_bench.time, "monotonic", lambda: next(clock))
    path = tmp_path / "bench.json"
    with pytest.raises(SystemExit, match="the time was up .* run it once more"):
        run(path, time_limit=2.0)
    assert not json.loads(path.read_text())["complete"] and planted["measured"] == ["first"]
    found = run(path)
    assert found["complete"] and planted["measured"] == ["first", "second"] and len(found["runs"]) == 2
    assert [row["run"] for row in found["rows"]] == [0, 1, 1]
    run(path, again=True)
    assert planted["measured"] == ["first", "second", "first", "second"]


def test_a_failure_is_said_and_its_unit_measured_anew(tmp_path, planted, capsys):
    path = tmp_path / "bench.json"
    found = run(path)
    assert found["complete"] and found["rows"][-1]["failed"] == "no compiler"
    assert "no compiler" in capsys.readouterr().out
    found = run(path)
    assert planted["measured"] == ["first", "second", "second"]
    assert [row["name"] for row in found["rows"]] == [EAGER, EAGER, THEIRS_STATIC]
    assert found["rows"][-1]["ms"] == 3.0 and [row["run"] for row in found["rows"]] == [0, 1, 1]


def test_what_does_not_fit_into_memory_is_skipped(tmp_path, planted, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(system_bench, "Subject", full)
    rows = run(tmp_path / "bench.json")["rows"]
    assert [row["skipped"] for row in rows] == ["out of memory: CUDA out of memory"] * 2


def test_results_of_other_settings_are_not_gone_on_with(tmp_path, planted):
    path = tmp_path / "bench.json"
    found = run(path)
    found["settings"]["prefix"] = 7
    path.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="got other settings in .*; pass --again to measure all anew"):
        run(path)


def test_what_it_is_asked_for_is_checked_first(tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="expected a GPU, got none; pass --dry"):
            system_bench.main(tmp_path / "bench.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="expected a known shape, got 'llama'; pass one of llama-3.1-8b"):
        system_bench.main(tmp_path / "bench.json", shape=["llama"])
    assert not list(tmp_path.iterdir())


def test_ways_take_turns_and_only_some_may_fail():
    taken = []

    def way(name, failing_from=99):
        def run(prompt):
            taken.append(name)
            if taken.count(name) > failing_from:
                raise RuntimeError("no\n  such thing")
            return name, taken.count(name)

        return run

    texts, failures = interleaved({EAGER: way(EAGER), THEIRS: way(THEIRS)}, None, repeats=2)
    assert texts == {EAGER: [(EAGER, 2), (EAGER, 3)], THEIRS: [(THEIRS, 2), (THEIRS, 3)]} and not failures
    assert taken == [EAGER, THEIRS, THEIRS, EAGER, EAGER, THEIRS], "who begins rotates"
    for name in MAY_FAIL:
        assert interleaved({EAGER: way("a"), name: way(name, 1)}, None, 3)[1] == {name: "RuntimeError: no such thing"}
        assert taken.count(name) == 2 if name != THEIRS else True, "it is not tried again"
    with pytest.raises(RuntimeError):
        interleaved({EAGER: way("b", 1)}, None, 3)


def test_a_static_cache_that_fails_leaves_a_row_and_no_trace(subject, monkeypatch):
    def generate(model, *args, **options):
        if options.get("cache_implementation") == "static":
            model._compiled_call = len
            raise ValueError("no static cache")
        return plain(model, *args, **options)

    plain = type(subject.model).generate
    monkeypatch.setattr(type(subject.model), "generate", generate)
    ours, static = system_bench_texts.static_rows(subject)
    assert static["failed"] == "ValueError: no static cache" and "ms" in ours
    assert not hasattr(subject.model, "_compiled_call")


def test_replayed_drafts_are_accepted_as_told_and_held_against_the_formula(subject):
    (row,) = replay_rows(subject, acceptance=1.0, length=3)
    assert row["same_text"] and row["expected_tokens"] == 4.0
    assert row["tokens_per_round"] == pytest.approx(11 / 3), "12 tokens: the prompt's, then 4, 4 and 3"
    formula = row["tokens_per_round"] * row["t_one_ms"] / (row["draft_ms"] + row["t_wide_ms"])
    assert row["formula"] == pytest.approx(formula) and row["speedup"] == pytest.approx(row["plain_ms"] / row["ms"])
    assert row["of_formula"] == pytest.approx(row["speedup"] / formula)
    assert row["formula_expected"] == pytest.approx(formula * 4 / (11 / 3))
    assert sum(row["shares"].values()) == pytest.approx(1.0) and row["graphs"] is None
    (row,) = replay_rows(subject, acceptance=0.0, length=3)
    assert row["same_text"] and row["tokens_per_round"] == 1.0


def test_laps_are_shares_of_the_rounds_and_drafting_is_per_round():
    step = Step(0, (1,), 0, 0, 0)
    rounds = [Round((step,), Seconds(draft=0.001, score=0.004, rule=0.003, cache=0.001, host=0.001), 1, False)] * 2
    shares, draft_ms = laps(rounds)
    assert shares == pytest.approx({"score_and_rule": 0.7, "draft": 0.1, "cache": 0.1, "host": 0.1})
    assert draft_ms == pytest.approx(1.0)


def test_passes_are_of_what_they_say_and_pages_are_given_back(subject):
    rows = score_rows(subject, batch=2)
    assert [(row["name"], row["num_nodes"]) for row in rows] == [
        ("score chain", 1), ("score chain", 2), ("score chain", 4), ("score tree", 4), ("score chain", 16),
        ("score tree", 16),
    ]  # fmt: skip
    assert rows[0]["ratio"] == 1.0 and rows[3]["ratio"] == pytest.approx(rows[3]["ms"] / rows[0]["ms"])
    assert rows[0]["share"] == pytest.approx(subject.floor_ms / rows[0]["ms"])
    with prefixes(subject, 2) as requests:
        assert [table.length for table in requests.tables] == [DRY.prefix] * 2
        assert requests.tables[0].tokens != requests.tables[1].tokens
        for tree in (tree_of(7), chain_of(3)):
            assert requests.scoring(tree)().logits.shape == (2 * len(tree), 512)
        requests.committing(chain_of(3), [1, 2])()
        assert [table.length for table in requests.tables] == [DRY.prefix + 3] * 2
        requests.cut(DRY.prefix)
        requests.cache.check()
    assert requests.cache.num_free_pages == requests.cache.num_pages
    (row,) = commit_rows(subject, batch=2)
    assert row["share"] == pytest.approx(row["ms"] / (row["ms"] + row["score_ms"])) and row["waits"] is None


def test_captured_passes_are_compared_where_there_are_any(recording, monkeypatch):  # noqa: F811
    def reasons(mode, device):
        return "no compiler" if mode == COMPILED else None

    for module in (system_bench_subject, system_bench_texts):
        monkeypatch.setattr(module, "absent", reasons)
    subject = Subject(TINY, CPU, DRY, ceiling=10.0)
    rows = system_bench_texts.decoding_rows(subject)
    assert [row["name"] for row in rows] == [CAPTURED, EAGER, THEIRS] and all(row["same_text"] for row in rows)
    assert all(row["ms_low"] <= row["ms"] <= row["ms_high"] and row["ms_between"] > 0 for row in rows)
    assert {row["mode"] for row in (*score_rows(subject, 1), *commit_rows(subject, 1))} == {"captured"}
    (row,) = replay_rows(subject, acceptance=1.0, length=3)
    assert row["same_text"] and row["graphs"]["num_replayed"] > row["graphs"]["num_captured"] > 0
    assert system_bench_texts.compiled_rows(subject) == []


def row(name, unit, **values):
    return {"shape": "qwen3-8b", "unit": unit, "name": name, "run": 0, **values}


def test_figures_are_of_rows_measured_together():
    rows = [
        row(CAPTURED, "decoding", ms=4.0, share=0.85),
        row(EAGER, "decoding", ms=24.0, share=0.14),
        row(THEIRS, "decoding", ms=18.0, share=0.2),
        {**row(THEIRS, "decoding", ms=1.0, share=0.2), "shape": "llama-3.1-8b"},  # without ours beside it
        row(CAPTURED, "static cache", ms=5.0, ms_between=5.0, share=0.7),
        row(THEIRS_STATIC, "static cache", ms=20.0, ms_between=10.0, share=0.35),
        row(CAPTURED, "torch.compile", ms=4.0, share=0.85),
        row("specdec compiled", "torch.compile", ms=3.2, share=1.0),
        row("commit", "commit, batch 1", ms=0.1, share=0.01, waits=False, mode="captured"),
        row("commit", "commit, batch 8", ms=0.1, share=0.03, waits=True, mode="captured"),
        row("score chain", "passes, batch 1", ms=4.4, num_nodes=16, ratio=1.1, share=0.8, mode="captured"),
        row("score tree", "passes, batch 1", ms=4.8, num_nodes=16, ratio=1.2, share=0.8, mode="captured"),
        row("replay", "replay 0.8 x 4", ms=2.0, of_formula=0.97, shares={"cache": 0.02}, mode="captured"),
        row("replay", "replay 0.8 x 8", ms=2.0, of_formula=0.1, shares={"cache": 0.9}, mode="eager"),
        row("specdec compiled", "torch.compile", failed="no compiler"),
        row("head eagle3 chain", "head eagle3 chain", ms=5.0, draft_share=0.11, floor_share=0.1, mode="captured"),
        row("head block", "head block", ms=5.0, draft_share=0.09, floor_share=0.08, mode="captured"),
        row("head small block", "head small block", ms=5.0, draft_share=0.9, floor_share=0.08, mode="eager"),
        {**row("commit", "commit, batch 1", ms=9.0, share=0.9, waits=True, mode="captured"), "shape": TINY},
    ]
    found = figures(rows)
    values = [4.5, 0.85, 0.03, 1.0, 0.97, 6.0, 2.0, 1.2, None, 0.02, 1.25, 0.11, None, 0.09, None]
    assert [each["value"] for each in found] == [each if each is None else pytest.approx(each) for each in values]
    states = [state_of(each["value"], each["goal"]) for each in found]
    assert states[:5] == ["reached", "reached", "not reached", "not reached", "reached"]
    assert states[5:9] == [None, None, None, "not measured"]
    assert states[11:] == ["reached", "not measured", "not reached", "not measured"]
    assert [each["figure"] for each in found] == list(GOALS)
    assert {each["value"] for each in figures([])} == {None}


def test_what_is_reached_on_the_edge():
    assert [state_of(value, ">= 4") for value in (3.999, 4.0)] == ["not reached", "reached"]
    assert [state_of(value, "<= 0.02") for value in (0.02, 0.0201)] == ["reached", "not reached"]


def test_the_table_says_what_went_wrong():
    results = Results(None, is_dry=False, is_new=False)
    results.value["runs"] = [{}]
    results.value["absent"] = {"specdec compiled": "needs a GPU"}
    results.add(
        row(THEIRS, "decoding", ms=4.0, share=0.1, same_text=False),
        row(THEIRS_STATIC, "static cache", ms=4.0, share=0.1, same_text=True, is_compiled=False),
        row("commit", "commit, batch 8", ms=1.0, share=0.2, waits=True, num_nodes=16, batch=8, mode="captured"),
        row("decoding", "decoding", skipped="out of memory"),
    )
    shown = table(results.value)
    assert list(shown.columns[3].cells) == ["4.000", "4.000", "1.000", "skipped"]
    assert list(shown.columns[4].cells) == [
        "0.10 of the weight-read floor, another text",
        "0.10 of the weight-read floor, not compiled",
        "0.200 of scoring and commit, waits for the device",
        "out of memory",
    ]
    assert shown.caption == "specdec compiled: needs a GPU"


def test_the_grid():
    names = [unit.name for unit in units(REAL)]
    assert len(names) == len(set(names)) == 1 + 2 + 2 + 6 + 4 + 2
    assert names[0] == "decoding" and names[-2:] == ["static cache", "torch.compile"]
    assert json.loads(json.dumps(REAL._asdict())) == REAL._asdict(), "settings are compared with those of a file"
