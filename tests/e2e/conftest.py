"""Tiny models: one at hand, and some in folders for tests that run commands."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from specdec import cli
from specdec.draft_models.head_writing import write_head
from specdec.draft_models.medusa import MedusaNetwork
from specdec.experiments.corpus import DOMAINS, Document, train_tokenizer
from tests.toys.models import tiny_model
from tests.toys.recorded import recording  # noqa: F401 - a fixture

TEXT = "def f(x):\n    return x\n\nOnce upon a time, there was a small dog. The dog was happy. "


def llama(folder, seed, vocab_size):
    """A tiny Llama whose text repeats itself, as its layers add little to the embedding."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def model():
    """A target of random weights, for tests of what is done with one."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A target, a draft model of the same tokens, one of others, untrained heads, and a file of prompts."""
    root = tmp_path_factory.mktemp("models")
    documents = [Document(domain, f"{domain}{index}", TEXT * 9) for domain in DOMAINS for index in range(3)]
    train_tokenizer(documents, 320, root / "target")
    vocab_size = len(json.loads((root / "target" / "tokenizer.json").read_text())["model"]["vocab"])
    llama(root / "target", 0, vocab_size)
    llama(root / "draft", 1, vocab_size)
    llama(root / "other", 2, vocab_size - 40)
    prompts = [("a1", "story", "Once upon a time, "), ("a2", "story", "The dog was"), ("b1", "code", "def f(x):\n    ")]
    target = LlamaForCausalLM.from_pretrained(root / "target")
    write_head(MedusaNetwork(target.config, num_heads=2), root / "head", "medusa", target.config)
    lines = [json.dumps({"id": name, "category": kind, "turns": [text]}) for name, kind, text in prompts]
    (root / "prompts.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def specdec(folders, monkeypatch):
    """Runs a command on the tiny models; words that begin with @ are files beside them."""
    monkeypatch.chdir(folders)

    def run(line, *words):
        words = [*line.split(), *words]
        return CliRunner().invoke(cli.app, [word.replace("@", f"{folders}/") for word in words])

    return run
