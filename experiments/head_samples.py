"""Texts that a target wrote itself, for heads to learn on; kept in a folder, written piece by piece.

openings.safetensors   what it continues: tokens, lengths          held_out.json   what heads are measured on
00000.safetensors ...  the texts, openings included: tokens, lengths, prompt_lengths
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import specdec

from .head_files import Advance, nobody, save_whole, write_whole
from .head_openings import Opening, Openings
from .train_lm import claim

PARTS = ("tokens", "lengths", "prompt_lengths")


@dataclass(frozen=True, slots=True)
class ResponseConfig:
    """What the target writes."""

    data: tuple[str, ...] = ()  # see `head_openings.read_openings`; none: it writes from the beginning of a text
    max_tokens: int = 400_000  # in all
    response_length: int = 192
    temperature: float = 1.0  # 0: greedily
    batch_size: int = 64
    seed: int = 0
    writer: str = ""  # `head_features.fingerprint` of the target


@dataclass(frozen=True, slots=True)
class Samples:
    """Texts, one after the other.

    Example:
        >>> samples = Samples.of([[5, 6, 7], [8, 9]], prompt_lengths=[2, 1])
        >>> samples.text(0).tolist(), samples.counts(10).tolist()
        ([5, 6, 7], [0, 0, 0, 0, 0, 0, 0, 1, 0, 1])
    """

    tokens: Tensor  # [n] int32
    starts: Tensor  # [texts] int64, where in them a text begins
    lengths: Tensor  # [texts] int64
    prompt_lengths: Tensor  # [texts] int64; the target wrote what follows

    @staticmethod
    def of(texts: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> "Samples":
        """These texts."""
        flat = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
        return Samples.joined(flat, torch.tensor([len(text) for text in texts]), torch.tensor(list(prompt_lengths)))

    @staticmethod
    def joined(tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor) -> "Samples":  # [n], [texts], [texts]
        """The texts that these tokens are, one after the other."""
        return Samples(tokens, lengths.cumsum(0) - lengths, lengths, prompt_lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def text(self, index: int) -> Tensor:  # [length] int32
        """One of them."""
        start = int(self.starts[index])
        return self.tokens[start : start + int(self.lengths[index])]

    def counts(self, vocab_size: int) -> Tensor:  # [vocab] int64
        """How often the target wrote each token."""
        lengths = self.lengths - self.prompt_lengths
        firsts = self.starts + self.prompt_lengths - (lengths.cumsum(0) - lengths)
        written = torch.arange(int(lengths.sum())) + firsts.repeat_interleave(lengths)
        return torch.bincount(self.tokens[written].long(), minlength=vocab_size)

    @property
    def fingerprint(self) -> str:
        """Equal for the same texts."""
        code = 0
        for part in (self.tokens, self.starts, self.lengths, self.prompt_lengths):
            code = zlib.crc32(part.numpy().tobytes(), code)
        return f"{code:08x}"

    def cut(self, length: int, shortest: int = 0) -> "Samples":
        """The beginnings of the texts; of those in which the target then says something that a head could draft, and
        that have so many tokens."""
        lengths = self.lengths.clamp_max(length)
        kept = (lengths > self.prompt_lengths + 1) & (lengths >= shortest)
        return Samples(self.tokens, self.starts[kept], lengths[kept], self.prompt_lengths[kept])


def frequent_tokens(counts: Tensor, size: int, always: Sequence[int] = ()) -> list[int]:  # [vocab]
    """The most frequent tokens, ascending; those of `always` among them. Of equally frequent ones the first.

    Example:
        >>> frequent_tokens(torch.tensor([0, 5, 1, 5, 2]), 3, always=[0])
        [0, 1, 3]
    """
    counts = counts.clone()
    counts[list(always)] = counts.max() + 1
    return sorted(counts.sort(descending=True, stable=True).indices[:size].tolist())


def begin_responses(openings: Callable[[], Openings], config: ResponseConfig, folder: Path) -> None:
    """Makes the folder with its openings, or finds it as this config left it.

    Raises:
        ValueError: the folder has the texts of another config.
    """
    if (folder / "config.json").exists():
        claim(folder, config)
        return
    made = openings()
    texts = sorted((opening.tokens for opening in made.train), key=len)  # together in a batch: less padding
    folder.mkdir(parents=True, exist_ok=True)
    flat = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    save_whole(
        {"tokens": flat, "lengths": torch.tensor([len(text) for text in texts])}, folder / "openings.safetensors"
    )
    write_whole(json.dumps([asdict(one) for one in made.held_out]), folder / "held_out.json")
    claim(folder, config)


def write_responses(
    target: Any,
    config: ResponseConfig,
    folder: Path,
    advance: Advance = nobody,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Has the target continue the openings of a folder; what is there is kept.

    Args:
        target: a causal LM.
        config: how much, and how.
        folder: begun by `begin_responses`.
        advance: told how far it is.
        share: of several processes, which one this is and how many there are.

    Example:
        >>> import tempfile
        >>> target, _, _ = specdec.load_embedded()
        >>> folder, config = Path(tempfile.mkdtemp()) / "responses", ResponseConfig(response_length=4)
        >>> begin_responses(lambda: Openings([Opening("a", [0])] * 3, [Opening("a", [0, 5])]), config, folder)
        >>> write_responses(target, config, folder)
        >>> samples, held_out = read_responses(folder)
        >>> samples.prompt_lengths.tolist(), held_out
        ([1, 1, 1], [Opening(category='a', tokens=[0, 5])])
    """
    batches = _batches(folder, config.batch_size)
    for number, batch in islice(enumerate(batches), share[0], None, share[1]):
        advance(number, len(batches), "responses")
        path = folder / f"{number:05d}.safetensors"
        if not path.exists():
            written = list(_written(target, batch, config, number))
            samples = Samples.of(written, [len(text) for text in batch])
            save_whole({name: getattr(samples, name) for name in PARTS}, path)


def read_responses(folder: Path) -> tuple[Samples, list[Opening]]:
    """The texts of a folder, and the openings that heads are measured on.

    Raises:
        ValueError: there are none, or not yet all.
    """
    remedy = "pass the one that a run has finished, or none"
    if not (folder / "openings.safetensors").exists() or not (folder / "config.json").exists():
        raise ValueError(f"expected a folder of responses, got {str(folder)!r}; {remedy}")
    batch_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["batch_size"]
    count, paths = len(_batches(folder, batch_size)), sorted(folder.glob("[0-9]*.safetensors"))
    if len(paths) < count:
        raise ValueError(f"expected {count} files of responses in {str(folder)!r}, got {len(paths)}; {remedy}")
    parts = [load_file(path) for path in paths]
    samples = Samples.joined(*(torch.cat([part[name] for part in parts]) for name in PARTS))
    held_out = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return samples, [Opening(*opening.values()) for opening in held_out]


def _batches(folder: Path, size: int) -> list[list[list[int]]]:
    stored = load_file(folder / "openings.safetensors")
    texts = [part.tolist() for part in stored["tokens"].split(stored["lengths"].tolist())]
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _written(target: Any, openings: list[list[int]], config: ResponseConfig, number: int) -> Iterator[list[int]]:
    """The texts that the target makes of these openings; an end-of-text token is part of them."""
    width = max(map(len, openings))
    end = target.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [] if end is None else [end])
    padded = torch.tensor([[0] * (width - len(opening)) + opening for opening in openings])
    mask = torch.tensor([[0] * (width - len(opening)) + [1] * len(opening) for opening in openings])
    sampling = {"do_sample": True, "temperature": config.temperature} if config.temperature else {"do_sample": False}
    texts = specdec.generate(
        target,
        padded.to(target.device),
        attention_mask=mask.to(target.device),
        max_new_tokens=config.response_length,
        pad_token_id=0,
        seed=config.seed + number,
        **sampling,
    )
    for opening, row in zip(openings, texts[:, width:].tolist(), strict=True):
        stop = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
        yield opening + row[:stop]
