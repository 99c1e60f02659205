"""What the system benchmark asks of a GPU: models made there, graphs replayed, waiting seen."""

import pytest
import torch

from specdec.experiments.shapes import TINY
from specdec.experiments.system_bench_passes import commit_rows, score_rows, waits_for_device
from specdec.experiments.system_bench_subject import DRY, Subject
from specdec.experiments.system_bench_texts import decoding_rows, replay_rows

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def subject():
    return Subject(TINY, CUDA, DRY, ceiling=1000.0)


def test_waiting_for_the_device_is_seen():
    here = torch.ones(8, device=CUDA)
    before = torch.cuda.get_sync_debug_mode()
    assert waits_for_device(lambda: here + here, CUDA) is False
    assert waits_for_device(here.tolist, CUDA) is True
    assert torch.cuda.get_sync_debug_mode() == before


def test_a_model_is_made_on_the_device(subject):
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


def test_texts_and_passes_are_captured_and_the_same(subject):
    rows = decoding_rows(subject)
    assert [row["name"] for row in rows] == ["specdec captured", "specdec eager", "transformers"]
    assert all(row["same_text"] for row in rows)
    assert {row["mode"] for row in score_rows(subject, batch=2)} == {"captured"}
    (row,) = replay_rows(subject, acceptance=1.0, length=3)
    assert row["same_text"] and row["tokens_per_round"] == pytest.approx(11 / 3)
    assert row["graphs"]["num_replayed"] > row["graphs"]["num_captured"] > 0


def test_a_commit_waits_for_nothing(subject):
    (row,) = commit_rows(subject, batch=2)
    assert row["waits"] is False
