"""Heads with random weights on a small target, and what they compute, written out from scratch for one text."""

from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen3Config

from specdec.draft_models.block_network import BlockNetwork, BlockShape
from specdec.draft_models.eagle import EagleNetwork
from specdec.draft_models.eagle3 import Eagle3Network, Norms
from specdec.draft_models.medusa import MedusaNetwork
from specdec.draft_models.token_drafter import UNKNOWN
from specdec.features import LAST, FeatureRows
from specdec.feed import FeatureFeed
from specdec.protocols import RequestView
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree
from tests.toys.sessions import PROMPTS, VOCAB, Session

HIDDEN, NUM_LAYERS = 16, 4
DRAFT_TOKENS = [1, 2, 3, 5, 7, 8, 11, 13, 17, 20, 22]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny_target(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES, num_hidden_layers=NUM_LAYERS, initializer_range=0.5)
    return LlamaForCausalLM(config).to(dtype).eval()


def head_config(kind=LlamaConfig, num_hidden_layers=1, **over):
    """Of the layers of a head; heads of attention that are not the hidden size together."""
    return kind(**{**SIZES, "head_dim": 6, "num_hidden_layers": num_hidden_layers, **over})


def randomised(network, seed=1, dtype=torch.float64):
    """The network with weights of a size that shows in its logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.to(dtype).parameters():
            scale = 0.25 if parameter.dim() > 1 else 0.2
            center = 0.0 if parameter.dim() > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + center)
    return network.eval()


def eagle(num_hidden_layers=1, has_bias=True):
    return randomised(EagleNetwork(head_config(num_hidden_layers=num_hidden_layers), has_bias))


def eagle3(kind=LlamaConfig, num_hidden_layers=1, norms=None, draft_tokens=DRAFT_TOKENS, has_embeddings=False, **over):
    config = head_config(kind, num_hidden_layers, **over)
    return randomised(Eagle3Network(config, (2, 0, 1), draft_tokens, norms, has_embeddings))


STEPPING = {
    "eagle": lambda: eagle(),
    "eagle without bias, two layers": lambda: eagle(2, has_bias=False),
    "eagle3": lambda: eagle3(),
    "eagle3, own embeddings, all tokens": lambda: eagle3(draft_tokens=None, has_embeddings=True),
    "eagle3, two layers of Qwen3": lambda: eagle3(Qwen3Config, 2, Norms(norm_before_residual=True)),
    "eagle3, norm of all features": lambda: eagle3(norms=Norms(norm_before_fc=True)),
    "eagle3, norms everywhere else": lambda: eagle3(norms=Norms(fc_norm=True, norm_output=True)),
    "eagle3, biases, other rotation": lambda: eagle3(
        attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    ),
}


SHAPE = BlockShape(block_size=6, mask_token_id=0)
ONE_PASS = {
    "medusa": lambda: medusa(),
    "medusa, shared output, two layers": lambda: medusa(num_layers=2, has_outputs=False),
    "block": lambda: block(),
    "block of Llama's kind, one layer": lambda: block(LlamaConfig, 1, draft_tokens=DRAFT_TOKENS),
    "block that drafts from the pending token, too": lambda: block(shape=replace(SHAPE, sample_from_anchor=True)),
    "block with a Markov head": lambda: block(markov=(3, "vanilla"), confidence="markov"),
    "block with a gated Markov head": lambda: block(markov=(3, "gated"), draft_tokens=DRAFT_TOKENS, confidence=True),
    "block with a causal and a windowed layer": lambda: block(
        shape=replace(SHAPE, causal_layers=(1,)),
        layer_types=["sliding_attention", "full_attention"],
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=0,
    ),
}


def medusa(num_heads=5, **over):
    return randomised(MedusaNetwork(PretrainedConfig(hidden_size=HIDDEN, vocab_size=VOCAB), num_heads, **over))


def block(kind=Qwen3Config, num_hidden_layers=2, shape=SHAPE, draft_tokens=None, markov=None, confidence=False, **over):
    config = head_config(kind, num_hidden_layers, **over)
    return randomised(BlockNetwork(config, (2, 0, 1), shape, draft_tokens, markov, confidence))


# ---- what heads compute, from their weights


def norm(rows, module):
    return rows * (rows.pow(2).mean(-1, keepdim=True) + module.eps).rsqrt() * module.weight


def turned(rows, positions, config):
    """Rotary embedding of rows [n, heads, dim], pair by pair."""
    dim, parameters = rows.shape[-1], config.rope_parameters
    factor = parameters["factor"] if parameters["rope_type"] == "linear" else 1.0
    frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim) / factor  # of float32
    turned = torch.empty_like(rows)
    for pair in range(dim // 2):
        angles = torch.tensor(positions).float() * frequencies[pair]
        cos, sin = angles.cos().to(rows)[:, None], angles.sin().to(rows)[:, None]
        one, two = rows[..., pair], rows[..., pair + dim // 2]
        turned[..., pair], turned[..., pair + dim // 2] = one * cos - two * sin, two * cos + one * sin
    return turned


def attended(attention, config, queries_of, keys_of, positions, visible):
    """Attention of rows over keys of rows [n, hidden], of which they are the last ones; `visible` [rows, n] bool."""
    dim = attention.head_dim
    queries, keys = attention.q_proj(queries_of), attention.k_proj(keys_of)
    queries, keys = queries.unflatten(-1, (-1, dim)), keys.unflatten(-1, (-1, dim))
    values = attention.v_proj(keys_of).unflatten(-1, (-1, dim))
    if attention.q_norm is not None:
        queries, keys = norm(queries, attention.q_norm), norm(keys, attention.k_norm)
    queries, keys = turned(queries, positions[-len(queries) :], config), turned(keys, positions, config)
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / dim**0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return attention.o_proj(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))


def causal(attention, config, rows):
    """Each row sees those in front of it and itself, in windows so many of them."""
    visible = torch.ones(len(rows), len(rows)).tril().bool()
    if (getattr(config, "layer_types", None) or [""] * 9)[attention.layer] == "sliding_attention":
        visible = visible.triu(1 - config.sliding_window)
    return attended(attention, config, rows, rows, range(len(rows)), visible)


def mlp(module, rows):
    return module.down_proj(F.silu(module.gate_proj(rows)) * module.up_proj(rows))


def layer_output(layer, config, rows):
    is_normed = isinstance(layer.input_layernorm, torch.nn.RMSNorm)
    normed = norm(rows, layer.input_layernorm) if is_normed else rows
    rows = rows + causal(layer.self_attn, config, normed)
    return rows + mlp(layer.mlp, norm(rows, layer.post_attention_layernorm))


def eagle_states(network, embedded, states):
    """States of all rows, and what the language model head reads."""
    rows = network.fc(torch.cat((embedded, states), -1))
    for layer in network.layers:
        rows = layer_output(layer, network.config, rows)
    return rows, rows


def eagle3_states(network, embedded, states):
    layer, norms = network.layers[0], network.norms
    normed = norm(states, layer.hidden_norm)
    rows = torch.cat((norm(embedded, layer.input_layernorm), normed), -1)
    rows = (normed if norms.norm_before_residual else states) + causal(layer.self_attn, network.config, rows)
    rows = rows + mlp(layer.mlp, norm(rows, layer.post_attention_layernorm))
    for layer in network.layers[1:]:
        rows = layer_output(layer, network.config, rows)
    read = norm(rows, network.norm)
    return (read if norms.norm_output else rows), read


def eagle3_fused(network, features):
    if network.norms.norm_before_fc:
        features = norm(features, network.input_norm)
    if network.norms.fc_norm:
        parts = features.chunk(len(network.fc_norm), -1)
        features = torch.cat([norm(part, module) for part, module in zip(parts, network.fc_norm, strict=True)], -1)
    return network.fc(features)


def features_of(network, target, tokens):
    """The target's features at these tokens, [n, layers * hidden]."""
    states = target(torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer if layer == LAST else layer + 1][0] for layer in network.feature_layers], -1)


def in_target_vocabulary(network, logits):
    if network.d2t is None:
        return logits
    wide = torch.full((*logits.shape[:-1], VOCAB), UNKNOWN, dtype=logits.dtype)
    for place, offset in enumerate(network.d2t.tolist()):
        wide[..., place + offset] = logits[..., place]
    return wide


@torch.no_grad()
def stepping_row(network, target, tokens, num_committed):
    """Logits [vocab] after the last of these tokens, of which the last committed one is pending."""
    run, fused, embed = eagle_states, lambda _, features: features, network.embed_tokens or target.model.embed_tokens
    if isinstance(network, Eagle3Network):
        run, fused = eagle3_states, eagle3_fused
    embedded = embed(torch.tensor(tokens[1:]))
    states = fused(network, features_of(network, target, tokens[: num_committed - 1]))
    for count in range(num_committed - 1, len(tokens)):
        own, read = run(network, embedded[:count], states)
        states = torch.cat((states, own[-1:]))
    return in_target_vocabulary(network, (network.lm_head or target.lm_head)(read[-1]))


@torch.no_grad()
def medusa_row(network, target, tokens, num_committed):
    """Logits [vocab] after the last of these tokens, by the head that looks so far ahead."""
    rows = features_of(network, target, tokens[: num_committed - 1])[-1]
    *blocks, last = network.medusa_head[len(tokens) - num_committed]
    if not network.has_outputs:
        blocks, last = [*blocks, last], target.lm_head
    for part in blocks:
        rows = rows + F.silu(part.linear(rows))
    return last(rows)


@torch.no_grad()
def block_row(network, target, tokens, num_committed, depth):
    """Logits [vocab] after the last of these tokens, and the chance that the one behind it is accepted."""
    shape, config, length = network.shape, network.config, num_committed - 1
    fused = norm(network.fc(features_of(network, target, tokens[:length])), network.hidden_norm)
    size = depth if shape.sample_from_anchor else depth + 1
    ids = torch.tensor([tokens[length], *[shape.mask_token_id] * (size - 1)])
    rows, positions = target.model.embed_tokens(ids), torch.arange(length + size)
    for index, layer in enumerate(network.layers):
        visible = torch.ones(size, length + size).bool()
        if index in shape.causal_layers:
            visible = visible.tril(length)
        if (getattr(config, "layer_types", None) or [""])[index % len(network.layers)] == "sliding_attention":
            visible &= positions > positions[length:, None] - config.sliding_window
        normed = norm(rows, layer.input_layernorm)
        keys_of = torch.cat((fused, normed))
        rows = rows + attended(layer.self_attn, config, normed, keys_of, range(length + size), visible)
        rows = rows + mlp(layer.mlp, norm(rows, layer.post_attention_layernorm))
    hidden = norm(rows, network.norm)[size - depth :][len(tokens) - num_committed]
    logits = (network.lm_head or target.lm_head)(hidden)
    if network.markov_head is not None:
        latent = network.markov_head.markov_w1.weight[tokens[-1]]
        if network.markov_head.gate_proj is not None:
            latent = latent * torch.sigmoid(network.markov_head.gate_proj(torch.cat((hidden, latent))))
        logits = logits + network.markov_head.markov_w2.weight @ latent
    return in_target_vocabulary(network, logits), hidden


class HeadSession(Session):
    """A session with a target that runs prompts and accepted tokens; its features are handed over as by the engine."""

    def __init__(self, drafter, target, prompts=PROMPTS, sampler=None, page_size=4, graphs=False):
        self.paged, self.features = PagedModel(target, graphs=graphs), {}
        drafter.check(self.paged)
        self.stack = ExitStack()
        self.stack.enter_context(self.paged.tapped(drafter.needs.feature_layers))
        super().__init__(drafter, prompts, sampler, page_size)
        self.feed = FeatureFeed(self.paged, drafter, self.cache, max_rows=5)

    def opened(self, tokens):
        table = self.cache.open(tokens)
        self.features[table] = FeatureRows(table.length)
        if len(tokens) - 1 > table.length:
            self.run(table, TokenTree.chain(tokens[table.length : -1]))
        return table

    def run(self, table, tree, path=None):
        """The target runs a tree, of which a path is kept."""
        path = list(range(1, len(tree))) if path is None else path
        self.cache.stage(table, len(tree))
        features = self.paged.score(self.cache, [Chunk(table, table.length, tree)]).features
        self.cache.commit(table, path, [tree.tokens[0], *tree.tokens_at(path)])
        self.features[table].extend(features, [0, *path])

    def views(self, indices):
        return [
            RequestView(i, self.tokens[i], 1, table, self.sampler, self.cache, row=i, features=self.features[table])
            for i in indices
            for table in [self.tables[i]]
        ]

    def propose(self, budgets, indices=None):
        indices = range(len(self.tokens)) if indices is None else indices
        return self.feed.propose(self.views(indices), budgets, [self.noises[i] for i in indices])

    def settle(self, index, draft, path, next_token):
        self.run(self.tables[index], draft.tree, path)
        self.tokens[index] += [*draft.tree.tokens_at(path), next_token]
