"""The commands that train: language models, and the heads that draft for one."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .cli_options import Device, Dtype, Json, Seed, Target, Threads, console, progress, quiet_transformers, use_threads
from .experiments.head_block import BlockConfig
from .experiments.head_eagle3 import Eagle3Config
from .experiments.head_medusa import MedusaConfig
from .experiments.head_recipe import HeadConfig
from .experiments.head_run import HeadFiles, train_on_responses
from .experiments.head_samples import ResponseConfig
from .experiments.lm_run import LmFiles, train_on_files
from .experiments.loading import load_models
from .experiments.prompts import PROMPTS
from .experiments.results_file import check_writable, write_json
from .experiments.stamp import environment
from .experiments.train_lm import LmConfig

LM, WRITING = LmConfig(), ResponseConfig()
MEDUSA, EAGLE3, BLOCK = MedusaConfig(), Eagle3Config(), BlockConfig()

Run = Annotated[Path, typer.Option(help="Folder of the run; one that exists is continued.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="What the target continues: a .txt, .md or .jsonl file, a folder, hub:NAME; may be repeated. Without, it "
        "writes from the beginning of a text."
    ),
]
Responses = Annotated[Path | None, typer.Option(help="Folder of another run's responses, to be learnt on once more.")]
Prompts = Annotated[Path, typer.Option(help="To measure on, if there is no --data.")]
Served = Annotated[float, typer.Option("--temperature", min=0.0, help="At which the target is served; 0: greedily.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens that the target writes.")]
ResponseLength = Annotated[int, typer.Option(min=2, help="Tokens of a response.")]
Epochs = Annotated[float, typer.Option(min=0.0, help="Passes over the texts.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
SequenceLength = Annotated[int, typer.Option(min=8, help="Tokens after which a text is cut.")]
LearningRate = Annotated[float, typer.Option(min=0.0, help="Of Muon, for the matrices.")]
AdamwRate = Annotated[float, typer.Option(min=0.0, help="Of AdamW, for the rest.")]
AcceptanceWeight = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the acceptance-aware loss.")]
Patience = Annotated[int, typer.Option(min=0, help="Measurements without a better one that end the run; 0: none do.")]
CacheGb = Annotated[float, typer.Option(min=0.0, help="Gigabytes of features to keep on disk; 0: they are computed.")]
FeatureLayers = Annotated[str | None, typer.Option(help="Of the target, like 1,6,10; 0 is the first.")]
DraftVocab = Annotated[int | None, typer.Option(min=1, help="Most frequent tokens to draft; all by default.")]
MlpSize = Annotated[int | None, typer.Option(min=1, help="Of the MLP; as the target's by default.")]

train_app = typer.Typer(help="Train models, and heads that draft.", no_args_is_help=True, rich_markup_mode=None)


@train_app.command("lm")
def train_lm(
    corpora: Annotated[Path, typer.Option(help="Folder with books/*.md and tinystories_*.txt.")],
    run: Annotated[Path, typer.Option(help="Folder of the run; one that exists is continued.")],
    teacher: Annotated[Path | None, typer.Option(help="Folder of a model to distil.")] = None,
    self_text: Annotated[int, typer.Option(min=0, help="Tokens the teacher writes to be learnt on.")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of a tokenizer; one is trained by default.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = LM.max_tokens,
    vocab_size: Annotated[int, typer.Option(min=257)] = LM.vocab_size,
    hidden_size: Annotated[int, typer.Option(min=1)] = LM.hidden_size,
    num_layers: Annotated[int, typer.Option(min=1)] = LM.num_layers,
    num_heads: Annotated[int, typer.Option(min=1, help="Of 64 dimensions each.")] = LM.num_heads,
    num_kv_heads: Annotated[int, typer.Option(min=1)] = LM.num_kv_heads,
    intermediate_size: Annotated[int, typer.Option(min=1)] = LM.intermediate_size,
    context: Annotated[int, typer.Option(min=1)] = LM.context,
    sequence_length: Annotated[int, typer.Option(min=1)] = LM.sequence_length,
    batch_size: Annotated[int, typer.Option(min=1)] = LM.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of Muon, for the matrices.")] = LM.learning_rate,
    embedding_rate: Annotated[float, typer.Option(help="Of AdamW, for the rest.")] = LM.embedding_rate,
    temperature: Annotated[float, typer.Option(help="Of the teacher.")] = LM.temperature,
    seed: Seed = LM.seed,
    threads: Threads = None,
) -> None:
    """Train a small Llama on stories, prose and code, or distil one; a killed run continues where it was."""
    given = {name: value for name, value in locals().items() if name in LmConfig.__dataclass_fields__}
    config = replace(LM, **given)
    use_threads(threads)
    with quiet_transformers(), progress() as advance:
        files = LmFiles(corpora, run, tokenizer, teacher)
        train_on_files(config, files, self_text, lambda done, loss: advance(done, config.num_steps, f"loss {loss:.3f}"))
    typer.echo(f"trained: {run / 'model'}")


@train_app.command("medusa")
def train_medusa(
    run: Run,
    data: Data = None,
    responses: Responses = None,
    prompts: Prompts = PROMPTS,
    target: Target = None,
    temperature: Served = MEDUSA.temperature,
    max_tokens: MaxTokens = WRITING.max_tokens,
    response_length: ResponseLength = WRITING.response_length,
    epochs: Epochs = MEDUSA.epochs,
    batch_size: BatchSize = MEDUSA.batch_size,
    sequence_length: SequenceLength = MEDUSA.sequence_length,
    learning_rate: LearningRate = MEDUSA.learning_rate,
    adamw_rate: AdamwRate = MEDUSA.adamw_rate,
    acceptance_weight: AcceptanceWeight = MEDUSA.acceptance_weight,
    patience: Patience = MEDUSA.patience,
    num_heads: Annotated[int, typer.Option(min=1, help="Tokens ahead.")] = MEDUSA.num_heads,
    num_layers: Annotated[int, typer.Option(min=1, help="Residual blocks per head.")] = MEDUSA.num_layers,
    num_tree_nodes: Annotated[
        int, typer.Option(min=0, help="Of the tree the heads are calibrated for; 0: none.")
    ] = MEDUSA.num_tree_nodes,
    own_outputs: Annotated[bool, typer.Option("--own-outputs", help="An output matrix per head.")] = False,
    cache_gb: CacheGb = 0.0,
    seed: Seed = MEDUSA.seed,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Train Medusa heads for a target, on what it writes itself; a killed run continues where it was."""
    _train(MEDUSA, locals())


@train_app.command("eagle3")
def train_eagle3(
    run: Run,
    data: Data = None,
    responses: Responses = None,
    prompts: Prompts = PROMPTS,
    target: Target = None,
    temperature: Served = EAGLE3.temperature,
    max_tokens: MaxTokens = WRITING.max_tokens,
    response_length: ResponseLength = WRITING.response_length,
    epochs: Epochs = EAGLE3.epochs,
    batch_size: BatchSize = EAGLE3.batch_size,
    sequence_length: SequenceLength = EAGLE3.sequence_length,
    learning_rate: LearningRate = EAGLE3.learning_rate,
    adamw_rate: AdamwRate = EAGLE3.adamw_rate,
    acceptance_weight: AcceptanceWeight = EAGLE3.acceptance_weight,
    patience: Patience = EAGLE3.patience,
    feature_layers: FeatureLayers = None,
    draft_vocab_size: DraftVocab = None,
    intermediate_size: MlpSize = None,
    unroll: Annotated[int, typer.Option(min=1, help="Steps of training-time test.")] = EAGLE3.unroll,
    cache_gb: CacheGb = 0.0,
    seed: Seed = EAGLE3.seed,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Train an EAGLE-3 head for a target, on what it writes itself; a killed run continues where it was."""
    _train(EAGLE3, locals())


@train_app.command("block")
def train_block(
    run: Run,
    data: Data = None,
    responses: Responses = None,
    prompts: Prompts = PROMPTS,
    target: Target = None,
    temperature: Served = BLOCK.temperature,
    max_tokens: MaxTokens = WRITING.max_tokens,
    response_length: ResponseLength = WRITING.response_length,
    epochs: Epochs = BLOCK.epochs,
    batch_size: BatchSize = BLOCK.batch_size,
    sequence_length: SequenceLength = BLOCK.sequence_length,
    learning_rate: LearningRate = BLOCK.learning_rate,
    adamw_rate: AdamwRate = BLOCK.adamw_rate,
    acceptance_weight: AcceptanceWeight = BLOCK.acceptance_weight,
    patience: Patience = BLOCK.patience,
    feature_layers: FeatureLayers = None,
    draft_vocab_size: DraftVocab = None,
    intermediate_size: MlpSize = None,
    num_layers: Annotated[int, typer.Option(min=1)] = BLOCK.num_layers,
    block_size: Annotated[int, typer.Option(min=2, help="The pending token and masked ones.")] = BLOCK.block_size,
    from_anchor: Annotated[
        bool, typer.Option("--from-anchor", help="Draft from the pending token's row, too.")
    ] = False,
    mask_token_id: Annotated[int | None, typer.Option(min=0, help="The rarest token by default.")] = None,
    markov_rank: Annotated[int, typer.Option(min=0, help="Of the Markov head; 0: none.")] = BLOCK.markov_rank,
    confidence: Annotated[bool, typer.Option("--confidence", help="Train a confidence head, too.")] = False,
    num_anchors: Annotated[int, typer.Option(min=1, help="Blocks per text and step.")] = BLOCK.num_anchors,
    cache_gb: CacheGb = 0.0,
    seed: Seed = BLOCK.seed,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Train a one-pass block drafter for a target, on what it writes itself; a killed run continues where it was."""
    _train(BLOCK, locals())


def _train(defaults: HeadConfig, given: dict[str, Any]) -> None:
    """Trains a head by the options of a command, and says what came out."""
    check_writable(given["json_file"])
    if given["responses"] is not None and given["data"]:
        raise ValueError("expected --responses or --data, got both; responses were written already")
    given["data"] = tuple(given["data"] or ())
    if "feature_layers" in given:
        given["feature_layers"] = _layers(given["feature_layers"])
    config, writing, files = _chosen(defaults, given), _chosen(WRITING, given), _chosen(HeadFiles(given["run"]), given)
    use_threads(given["threads"])
    number = os.environ.get("LOCAL_RANK")  # of several processes on this machine, each of which has a GPU of its own
    device = f"cuda:{number}" if number and given["device"] is None and torch.cuda.is_available() else given["device"]
    with quiet_transformers(), progress() as advance:
        models = load_models(given["target"], None, given["dtype"], device)
        result = train_on_responses(config, writing, files, models, advance)
    if os.environ.get("RANK", "0") != "0":
        return
    console().print(
        f"trained: {files.run / 'head'}, {result['tokens_per_step']:.2f} tokens per step after step {result['step']}; "
        f"{result['num_parameters']:,} parameters, {result['num_response_tokens']:,} tokens of responses"
    )
    write_json(given["json_file"], {**result, "target": models.target_name, "environment": environment()})


def _chosen(defaults: Any, given: dict[str, Any]) -> Any:
    """A dataclass with what was given of its fields."""
    return replace(defaults, **{field.name: given[field.name] for field in fields(defaults) if field.name in given})


def _layers(written: str | None) -> tuple[int, ...] | None:
    """The layers that an option names."""
    if written is None:
        return None
    try:
        return tuple(int(part) for part in written.split(","))
    except ValueError as error:
        raise ValueError(f"expected --feature-layers like 1,6,10, got {written!r}; write numbers") from error
