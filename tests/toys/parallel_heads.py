"""P-EAGLE heads with random weights, and what they compute, written out from scratch for one text."""

import torch
from transformers import LlamaConfig, Qwen3Config

from specdec.draft_models.eagle3 import Norms
from specdec.draft_models.peagle import PEagleNetwork
from tests.toys.heads import (
    DRAFT_TOKENS,
    HIDDEN,
    eagle3_fused,
    eagle3_states,
    features_of,
    head_config,
    in_target_vocabulary,
    randomised,
)
from tests.toys.sessions import VOCAB

PARALLEL = {
    "peagle": lambda: peagle(),
    "peagle, own embeddings, all tokens": lambda: peagle(draft_tokens=None, has_embeddings=True),
    "peagle, three layers of Qwen3": lambda: peagle(Qwen3Config, 3, Norms(norm_before_residual=True)),
    "peagle, norm of all features": lambda: peagle(norms=Norms(norm_before_fc=True)),
    "peagle, norms everywhere else": lambda: peagle(norms=Norms(fc_norm=True, norm_output=True)),
    "peagle with a windowed layer": lambda: peagle(
        Qwen3Config,
        layer_types=["full_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=0,
    ),
}


def peagle(kind=LlamaConfig, num_hidden_layers=2, norms=None, draft_tokens=DRAFT_TOKENS, has_embeddings=False, **over):
    config = head_config(kind, num_hidden_layers, **over)
    network = PEagleNetwork(config, (2, 0, 1), 0, draft_tokens, norms)
    if has_embeddings:
        network.embed_tokens = torch.nn.Embedding(VOCAB, HIDDEN)
    return randomised(network)


@torch.no_grad()
def peagle_row(network, target, tokens, num_committed):
    """Logits [vocab] after the last of these tokens, of which those behind the pending one are masked."""
    count = len(tokens) - num_committed
    ids = [*tokens[1:num_committed], *[network.mask_token_id] * count]
    features = features_of(network, target, tokens[: num_committed - 1])
    features = torch.cat((features, network.mask_hidden[0].expand(count, -1)))
    embedded = (network.embed_tokens or target.model.embed_tokens)(torch.tensor(ids))
    _, read = eagle3_states(network, embedded, eagle3_fused(network, features))
    return in_target_vocabulary(network, (network.lm_head or target.lm_head)(read[-1]))
