"""Self-draft heads in the whole loop: always right where they must be, harmless where they are wrong."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

import specdec
from specdec.draft_models.block_network import BlockNetwork, BlockShape
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle import Eagle, EagleNetwork
from specdec.draft_models.eagle3 import Eagle3, Eagle3Network
from specdec.draft_models.medusa import Medusa, MedusaNetwork
from specdec.draft_models.mtp import Mtp, MtpNetwork
from specdec.draft_models.peagle import PEagle, PEagleNetwork
from specdec.methods import HEADS, build_drafter
from specdec.target import PagedModel
from tests.e2e.test_robust import state_of
from tests.toys.heads import ONE_PASS, STEPPING, tiny_target
from tests.toys.models import tiny_model
from tests.toys.parallel_heads import PARALLEL

SIZE = 16  # of the vocabulary, and of hidden states: a token is a direction
PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 3, 9], [4, 1, 7, 2], [0, 0, 0, 5]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]),
}


def config(**over):
    sizes = {"vocab_size": SIZE, "hidden_size": SIZE, "intermediate_size": 8}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": 3}
    return LlamaConfig(**{**sizes, "pad_token_id": 0, "eos_token_id": None, **over})


def following():
    """Token -> the one behind it: one long cycle."""
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0)).tolist()
    return {token: order[(place + 1) % SIZE] for place, token in enumerate(order)}


def powers(count):
    """Matrix that scores, at a token's direction, the one `count` places behind it."""
    matrix, after = torch.eye(SIZE), following()
    step = torch.zeros(SIZE, SIZE)
    for token, behind in after.items():
        step[behind, token] = 1.0
    for _ in range(count):
        matrix = step @ matrix
    return matrix


@torch.no_grad()
def fill(module, **weights):
    """Zeros, and these weights; norms stay as they are."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            parameter.zero_()
    for name, value in weights.items():
        module.get_parameter(name.replace("__", ".")).copy_(value)
    return module


def clockwork():
    """A target whose next token depends on the last one only."""
    target = LlamaForCausalLM(config()).eval()
    return fill(target, model__embed_tokens__weight=torch.eye(SIZE), lm_head__weight=9 * powers(1))


def eagle():
    """Its state is the embedding of its token."""
    return fill(EagleNetwork(config(num_hidden_layers=1)), fc__weight=torch.eye(SIZE, 2 * SIZE))


def eagle3():
    """Each row sees itself only, and replaces its state by the embedding of its token."""
    one = config(num_hidden_layers=1, num_key_value_heads=2)
    one.layer_types, one.sliding_window = ["sliding_attention"], 1
    network = Eagle3Network(one, [0, 1, 2])
    instead = torch.cat((torch.eye(SIZE), -torch.eye(SIZE)), 1)  # of [embedding, state]
    weights = {"layers__0__self_attn__v_proj__weight": instead, "layers__0__self_attn__o_proj__weight": torch.eye(SIZE)}
    return fill(network, lm_head__weight=powers(1), **weights)


def medusa():
    network = MedusaNetwork(PretrainedConfig(hidden_size=SIZE, vocab_size=SIZE), num_heads=4)
    outputs = {f"medusa_head__{head}__1__weight": powers(head + 2) for head in range(4)}
    return fill(network, **outputs)


def peagle():
    """Each row is its token, if it is not masked, and then takes over from the one in front, once per layer, the token
    that follows."""
    config_of_rows = config(num_hidden_layers=4, num_key_value_heads=2, attention_bias=True)
    config_of_rows.layer_types, config_of_rows.sliding_window = ["sliding_attention"] * 4, 2
    network = PEagleNetwork(config_of_rows, [0, 1, 2], mask_token_id=SIZE)
    network.embed_tokens = torch.nn.Embedding(SIZE + 1, SIZE)
    weights = {"embed_tokens__weight": torch.eye(SIZE + 1, SIZE), "lm_head__weight": powers(1)}
    for layer in range(4):
        distance = torch.tensor(float(layer > 0))  # of the row that is seen, by the fastest of the rotations
        own, there = torch.zeros(2, 8), torch.zeros(2, 8)
        own[:, 0], there[:, 0], there[:, 4] = 30.0, 30.0 * distance.cos(), 30.0 * distance.sin()
        values = 0.5 * powers(1) if layer else 4 * torch.eye(SIZE, 2 * SIZE)
        parts = {"q_proj__bias": own.flatten(), "k_proj__bias": there.flatten(), "v_proj__weight": values}
        parts["o_proj__weight"] = torch.eye(SIZE)
        weights |= {f"layers__{layer}__self_attn__{name}": value for name, value in parts.items()}
    return fill(network, **weights)


def block():
    """Its Markov head knows it all."""
    shape = BlockShape(block_size=5, mask_token_id=0)
    network = BlockNetwork(config(num_hidden_layers=1), [0, 2], shape, markov=(SIZE, "vanilla"))
    return fill(network, markov_head__markov_w1__weight=torch.eye(SIZE), markov_head__markov_w2__weight=99 * powers(1))


def mtp():
    """Its layer adds nothing to the embedding."""
    return fill(MtpNetwork(clockwork()), eh_proj__weight=torch.eye(SIZE, 2 * SIZE))


ALWAYS_RIGHT = {
    "medusa": lambda: Medusa(medusa(), 4),
    "medusa, tree of fixed shape": lambda: Medusa(
        medusa(), speculative_token_tree=[(0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]
    ),
    "eagle": lambda: Eagle(eagle(), 4),
    "eagle, dynamic tree": lambda: Eagle(eagle(), 4, num_tree_nodes=12, tree_width=3),
    "eagle3": lambda: Eagle3(eagle3(), 4),
    "eagle3, dynamic tree": lambda: Eagle3(eagle3(), 4, num_tree_nodes=12, tree_width=3),
    "eagle3, coupled": lambda: Eagle3(eagle3(), 4, draft_sample_method="coupled"),
    "peagle": lambda: PEagle(peagle(), 4),
    "peagle, tree": lambda: PEagle(peagle(), 4, num_tree_nodes=12),
    "mtp": lambda: Mtp(mtp(), 4),
    "mtp, dynamic tree": lambda: Mtp(mtp(), 4, num_tree_nodes=12, tree_width=3),
    "dflash": lambda: DFlash(block(), 4),
    "dflash, tree": lambda: DFlash(block(), 4, num_tree_nodes=12),
}


@pytest.mark.parametrize("name", ALWAYS_RIGHT)
def test_a_head_that_knows_the_target_is_accepted_whole(name):
    """Off by one in tokens, positions or features, it would hardly ever be right."""
    out = specdec.generate(
        clockwork(),
        **PROMPTS,
        drafter=ALWAYS_RIGHT[name](),
        max_new_tokens=21,
        do_sample=False,
        return_dict_in_generate=True,
    )
    after = following()
    for row in out.sequences.tolist():
        assert all(after[one] == other for one, other in zip(row[3:], row[4:], strict=False))
    steps = [step for event in out.speculation.rounds for step in event.steps]
    assert {len(step.tokens) for step in steps} == {1, 5}  # the first round is plain, then 4 rounds of 5
    assert all(step.num_accepted == step.num_drafted for step in steps)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("name", ["medusa", "eagle", "eagle3", "peagle", "dflash", "mtp"])
def test_models_are_left_as_they_were(name, dtypes):
    """Precision, modes, hooks and weights of target and head, which need not be alike."""
    target = clockwork().to(dtypes[0]).train()
    networks = {"medusa": medusa, "eagle": eagle, "eagle3": eagle3, "peagle": peagle, "dflash": block, "mtp": mtp}
    network = networks[name]().to(dtypes[1]).train()
    before = state_of(target)
    modes = [module.training for module in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    drafter = {"method": name, "model": network, "num_speculative_tokens": 4}
    out = specdec.generate(target, **PROMPTS, drafter=drafter, max_new_tokens=9, do_sample=False)
    assert out.shape == (3, 13) and state_of(target) == before
    assert [module.training for module in network.modules()] == modes
    assert {key: value.dtype for key, value in network.state_dict().items()} == {k: v.dtype for k, v in weights.items()}
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert sorted(network.state_dict()) == sorted(weights)  # what is borrowed does not become its own


def test_a_head_serves_several_targets_one_after_the_other():
    network, sizes = medusa(), {"max_new_tokens": 9, "do_sample": False}
    other = fill(
        LlamaForCausalLM(config()).eval(), model__embed_tokens__weight=torch.eye(SIZE), lm_head__weight=powers(3)
    )
    drafter = Medusa(network, 4)
    for target in (clockwork(), other, clockwork()):
        assert torch.equal(
            specdec.generate(target, **PROMPTS, drafter=drafter, **sizes), target.generate(**PROMPTS, **sizes)
        )


@pytest.mark.parametrize("verifier", ["rejection", "block"])
def test_drawn_tokens_come_with_what_they_were_drawn_from(verifier):
    """The rule refuses a node whose row says it could not have been drawn."""
    target = tiny_target()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    for build, kind in (
        *[(STEPPING[name], Eagle3) for name in ("eagle3", "eagle3, two layers of Qwen3")],
        (PARALLEL["peagle"], PEagle),
        (ONE_PASS["medusa"], Medusa),
        (ONE_PASS["block with a gated Markov head"], DFlash),
    ):
        drafter = kind(build(), 3, draft_sample_method="probabilistic")
        out = specdec.generate(
            target,
            ids,
            drafter=drafter,
            verifier=verifier,
            seed=3,
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=True,
            return_dict_in_generate=True,
        )
        assert out.sequences.shape == (1, 29) and out.speculation.metrics.acceptance_rate > 0


WRONG = {
    "of another type": (
        lambda: Eagle3(eagle()),
        "expected a head of type Eagle3Network for the method 'eagle3', got Eagle",
    ),
    "nowhere": (lambda: {"method": "eagle", "model": "a/folder"}, "expected a folder or hub id, got 'a/folder'"),
    "of another size": (
        lambda: Eagle(EagleNetwork(LlamaConfig(**{**config().to_dict(), "hidden_size": 8, "head_dim": 4}))),
        "expected a head of the target's hidden size 16, got 8",
    ),
    "with more tokens": (
        lambda: Eagle3(Eagle3Network(config(vocab_size=40), [0, 1, 2], draft_tokens=[3, 30])),
        "expected a head that drafts tokens below the target's vocabulary of 16, got 30",
    ),
    "of more layers": (
        lambda: Eagle3(Eagle3Network(config(), [0, 1, 7])),
        "expected feature_layers from 0 to 2, got 7",
    ),
    "of another kind": (
        lambda: PEagle(eagle3()),
        "expected a head of type PEagleNetwork for the method 'peagle', got Eagle3Network",
    ),
    "with an unknown option": (
        lambda: {"method": "medusa", "model": medusa(), "num_heads": 3},
        "expected a known option of medusa",
    ),
    "without a model": (lambda: {"method": "dflash"}, "expected model for the drafter 'dflash'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_heads_that_do_not_fit_are_refused(what):
    build, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        specdec.generate(clockwork(), **PROMPTS, drafter=build(), max_new_tokens=3, do_sample=False)


def test_draft_tokens_must_be_a_vocabulary():
    for tokens in ([], [3, 3], [5, 2], [2, 16], [-1, 3]):
        with pytest.raises(ValueError, match="expected ascending draft_tokens below the vocabulary of 16, got"):
            Eagle3Network(config(), [0, 1], draft_tokens=tokens)


def test_rotations_that_depend_on_the_length_are_refused():
    scaled = config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ValueError, match="expected a rope_type that rotates a row always alike, got 'dynamic'"):
        EagleNetwork(scaled)


def test_a_head_without_target_says_so():
    drafter = Medusa(medusa(), 2)
    assert drafter.needs.feature_layers == (-1,) and drafter.needs.pool is None
    with pytest.raises(ValueError, match="expected a head that knows its target, got one without"):
        drafter._head.all_rows()


def test_names_are_those_of_vllm():
    target = PagedModel(tiny_model("llama", torch.float32, hidden_size=SIZE, vocab_size=SIZE))
    networks = {"medusa": medusa(), "eagle": eagle(), "eagle3": eagle3(), "peagle": peagle(), "dflash": block()}
    networks["mtp"] = mtp()
    assert set(HEADS) == set(networks)
    for name, network in networks.items():
        assert build_drafter({"method": name, "model": network}, target).name == name
