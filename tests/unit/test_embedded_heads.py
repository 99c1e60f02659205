"""The embedded heads: what they are, how they are put into the package, and how their worth is counted."""

import json
from math import isclose

import pytest
from safetensors.torch import load_file

import specdec
from specdec.draft_models.head_writing import write_head
from specdec.draft_models.medusa import MedusaNetwork
from specdec.events import Round, Seconds, Step
from specdec.experiments import assemble_heads
from specdec.experiments.head_acceptance import DRAFTERS, Result, figures_of, row_of
from specdec.methods import load_head, paged
from specdec.zoo import FOLDER, embedded_heads

MIB = 1 << 20


def test_models_and_heads_are_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 45 * MIB


@pytest.mark.parametrize("name", embedded_heads())
def test_a_head_of_the_package_says_what_it_is_and_no_folder_of_its_maker(name):
    folder = FOLDER / "heads" / name
    about = (folder / "config.json").read_text()
    assert assemble_heads.TARGET_NAME in about and "/root" not in about and "/work" not in about
    card = (folder / "README.md").read_text()
    assert "## Data" in card and "## Recipe" in card and name in card
    target, _, _ = specdec.load_embedded()
    head = load_head(str(folder), paged(target))
    parameters = sum(parameter.numel() for parameter in head.network.parameters())
    assert f"{parameters:,} parameters" in card


def rounds_of(drafting, counts):
    """A prompt's round, and one of 10 ms for each number of accepted tokens of 4."""
    prefill = Round((Step(0, (1,), 0, 0, 0),), Seconds(draft=9.0, score=9.0), 5, True)
    steps = [Step(0, tuple(range(count + 1)), count, 4, 4) for count in counts]
    return (prefill, *(Round((step,), Seconds(draft=drafting, score=0.01 - drafting), 5, False) for step in steps))


def test_a_row_counts_tokens_of_all_rounds_and_times_of_those_behind_the_prompt():
    results = [Result("prose", rounds_of(0.002, [4, 0])), Result("code", rounds_of(0.004, [1, 1, 1]))]
    row = row_of(results)
    assert row["tokens_per_step"] == {"all": 14 / 7, "prose": 7 / 3, "code": 7 / 4}
    assert row["acceptance_at"][:2] == [4 / 5, 1 / 5] and row["num_rounds"] == 5
    assert isclose(row["draft_ms_per_round"], (2 * 2 + 3 * 4) / 5) and isclose(row["draft_share"], 16 / 50)


def test_figures_hold_drafters_against_each_other():
    rows = {
        name: {"tokens_per_step": {"all": 2.0, "prose": 2.0}, "draft_ms_per_round": 8.0, "draft_share": 0.3}
        for name in DRAFTERS
    }
    rows["block"] |= {"tokens_per_step": {"all": 1.9, "prose": 1.0}, "draft_ms_per_round": 1.0, "draft_share": 0.2}
    rows["eagle3 tree"] |= {"tokens_per_step": {"all": 2.5, "prose": 1.0}}
    rows["ngram"] |= {"tokens_per_step": {"all": 1.0, "prose": 4.0}}
    found = {each["figure"]: (round(each["value"], 3), each["state"]) for each in figures_of(rows)}
    assert list(found.values()) == [
        (1.0, "reached"), (1.25, "reached"), (0.95, "reached"), (0.125, "reached"), (0.5, "not reached"),
        (0.3, "reached"), (0.2, "not reached"),
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of Medusa heads, and a package to put them into."""
    monkeypatch.setattr(assemble_heads, "FOLDER", tmp_path / "zoo")
    (tmp_path / "zoo" / "heads").mkdir(parents=True)
    run, target = tmp_path / "runs" / "medusa", specdec.load_embedded()[0]
    run.mkdir(parents=True)
    write_head(MedusaNetwork(target.config, num_heads=1, has_outputs=False), run / "head", "medusa", target.config)
    (run / "config.json").write_text(json.dumps({"epochs": 1.5}))
    (run / "log.jsonl").write_text('{"step": 4}\n{"step": 8}\n')
    return run


def test_a_finished_run_is_put_into_the_package(run, tmp_path):
    run.with_suffix(".json").write_text(json.dumps({"num_response_tokens": 1000}))
    assemble_heads.assemble("medusa", run, "A note.")
    folder = tmp_path / "zoo" / "heads" / "medusa"
    assert json.loads((folder / "config.json").read_text())["base_model_name_or_path"] == assemble_heads.TARGET_NAME
    card = (folder / "README.md").read_text()
    assert "8 steps, 1,500 tokens of responses.\nA note.\n" in card and "65,792 parameters" in card
    file = "medusa_lm_head.safetensors"
    assert load_file(folder / file).keys() == load_file(run / "head" / file).keys()


def test_a_run_that_goes_on_is_not(run):
    with pytest.raises(ValueError, match="expected the result of a finished run .* let it finish"):
        assemble_heads.assemble("medusa", run)
