"""The part of the system benchmark that drafts with heads, dry."""

import pytest
import torch

from specdec.experiments import system_bench_subject
from specdec.experiments.shapes import SHAPES, TINY, weight_bytes
from specdec.experiments.system_bench_heads import HEADS, drafter_of, head_rows
from specdec.experiments.system_bench_subject import DRY, Subject
from tests.toys.recorded import recording  # noqa: F401 - a fixture

CPU = torch.device("cpu")


def test_drafting_is_a_share_of_the_rounds_and_of_the_weights():
    subject = Subject(TINY, CPU, DRY, ceiling=10.0)
    for name, shape in HEADS.items():
        (row,) = head_rows(subject, name)
        assert row["same_text"] and 0 < row["draft_share"] < 1 and row["draft_ms"] > 0 and row["graphs"] is None
        drafter, network = drafter_of(shape, subject)
        own = sum(weight.numel() for weight in network.parameters())
        if shape.method == "eagle3":
            own = 5 * (own - network.fc.weight.numel()) + network.fc.weight.numel()
        elif shape.draft_tokens is None:
            own += subject.model.lm_head.weight.numel()
        wanted = 2 * own / (2 * own + weight_bytes(subject.model))
        assert row["floor_share"] == pytest.approx(wanted)


def test_published_heads_of_8b_shapes_read_more_than_their_goals():
    """EAGLE-3's layer and 32,000 outputs are read five times, DFlash's five layers beside the target's own head."""
    config = SHAPES["llama-3.1-8b"]
    hidden, mlp, kv = config["hidden_size"], config["intermediate_size"], 1024
    target = 32 * (2 * hidden * (hidden + kv) + 3 * hidden * mlp) + config["vocab_size"] * hidden
    eagle3 = 5 * (2 * hidden * (hidden + 2 * kv) + hidden**2 + 3 * hidden * mlp + 32000 * hidden) + 3 * hidden**2
    block = 5 * (2 * hidden * (hidden + kv) + 3 * hidden * mlp) + config["vocab_size"] * hidden + 5 * hidden**2
    assert eagle3 / (target + eagle3) == pytest.approx(0.204, abs=1e-3)
    assert block / (target + block) == pytest.approx(0.185, abs=1e-3)


def test_captured_heads_are_measured_where_there_are_graphs(recording, monkeypatch):  # noqa: F811
    monkeypatch.setattr(system_bench_subject, "absent", lambda mode, device: None)
    subject = Subject(TINY, CPU, DRY, ceiling=10.0)
    for name in HEADS:
        (row,) = head_rows(subject, name)
        assert row["mode"] == "captured" and row["same_text"]
        assert row["graphs"]["num_replayed"] > row["graphs"]["num_eager"] > 0, "the first text is for that"
