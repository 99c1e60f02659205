"""Heads with random weights for any target: they read its features, draft all the time, and are hardly ever right."""

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from specdec.draft_models.block_network import BlockNetwork, BlockShape
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle import Eagle, EagleNetwork
from specdec.draft_models.eagle3 import Eagle3, Eagle3Network, Norms
from specdec.draft_models.medusa import Medusa, MedusaNetwork
from specdec.draft_models.mtp import Mtp, MtpNetwork
from specdec.draft_models.peagle import PEagle, PEagleNetwork
from tests.toys.heads import randomised

# Whose layers cannot be an MTP module: other norms, layers that ask for more than rows and positions, attention sinks.
WITHOUT_MTP = {
    *("cohere", "cohere2", "gpt2", "gpt_bigcode", "gpt_neox", "nemotron", "opt", "phi", "stablelm", "starcoder2"),
    *("gemma3n_text", "gemma4_text", "gpt_oss"),
}
CHOICES = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]


def wrong_heads(target, vocab_size):
    """(name, drafter) of every method, as chain or tree, chosen, coupled or drawn."""
    config, dtype = target.config.get_text_config(decoder=True), target.dtype
    sizes = {"vocab_size": vocab_size, "hidden_size": config.hidden_size, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 1}
    torch.manual_seed(5)
    medusa = MedusaNetwork(PretrainedConfig(**sizes), 3, has_outputs=False).to(dtype)
    eagle = EagleNetwork(LlamaConfig(**sizes)).to(dtype)
    eagle3 = Eagle3Network(
        LlamaConfig(**sizes), (1, 0, 1), range(1, vocab_size, 3), Norms(fc_norm=True, norm_output=True), True
    ).to(dtype)
    peagle = PEagleNetwork(LlamaConfig(**{**sizes, "num_hidden_layers": 2}), (1, 0), 1, range(0, vocab_size, 2)).to(
        dtype
    )
    shape = BlockShape(block_size=4, mask_token_id=1)
    block = BlockNetwork(Qwen3Config(**sizes), (0, 1), shape, markov=(4, "gated"), confidence="markov").to(dtype)
    plain = BlockNetwork(LlamaConfig(**sizes), (1,), shape).to(dtype)
    yield "medusa", Medusa(medusa, speculative_token_tree=CHOICES)
    yield "eagle, coupled", Eagle(eagle, 3, draft_sample_method="coupled")
    yield "eagle3, dynamic tree", Eagle3(eagle3, 3, num_tree_nodes=7, tree_width=3)
    yield "eagle3, drawn", Eagle3(eagle3, 3, draft_sample_method="probabilistic")
    yield "peagle, tree", PEagle(peagle, 3, num_tree_nodes=7)
    yield "dflash, confident", DFlash(block, 3, confidence_threshold=0.2)
    yield "dflash, tree", DFlash(plain, 3, num_tree_nodes=7)
    if config.model_type not in WITHOUT_MTP:
        mtp = randomised(MtpNetwork(target), dtype=dtype)
        yield "mtp, coupled", Mtp(mtp, 3, draft_sample_method="coupled")
        yield "mtp, dynamic tree", Mtp(mtp, 3, num_tree_nodes=7, tree_width=3)
