"""Training text: three domains read from disk, tokenised once, sampled by weight.

Stories (simple children's stories), prose (public-domain novels) and code (the standard library of the running
interpreter). A document is held out by the hash of its name or opening, so the split is the same on every machine.
"""

import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DOMAINS = ("stories", "prose", "code")
HELD_OUT_IN = 50  # one document in so many is never trained on
END_OF_TEXT = "<|endoftext|>"
SKIPPED_CODE = {"site-packages", "test", "tests", "idlelib", "pydoc_data", "encodings", "lib2to3", "turtledemo"}


@dataclass(frozen=True, slots=True)
class Document:
    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.name.encode()) % HELD_OUT_IN == 0


def read_documents(corpora: Path) -> Iterator[Document]:
    """Every document of the three domains; `corpora` holds `books/*.md` and the two `tinystories` files."""
    if not (corpora / "books").is_dir():
        raise ValueError(f"expected a folder with books/ and tinystories_*.txt, got {corpora}; pass --corpora FOLDER")
    yield from _stories(corpora)
    for path in sorted((corpora / "books").glob("*.md")):
        yield Document("prose", path.name, _unwrap(path.read_text(encoding="utf-8")))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED_CODE.isdisjoint(relative.parts):
            yield Document("code", str(relative), path.read_text(encoding="utf-8", errors="replace"))


def _unwrap(text: str) -> str:
    """Prose with one line per paragraph and single spaces, so that a line break means something."""
    paragraphs = (re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _stories(corpora: Path) -> Iterator[Document]:
    cased_text = (corpora / "tinystories_2M.txt").read_text(encoding="utf-8")
    cased = [re.sub(r"\n+", "\n\n", story).strip() for story in cased_text.split(END_OF_TEXT)]
    lower_text = (corpora / "tinystories_lowercase_4M.txt").read_text(encoding="utf-8")
    forms = _common_forms(cased)
    seen = set()
    for story in [*cased, *(_truecase(story, forms) for story in re.split(r"(?<!\n)\n(?!\n)", lower_text))]:
        key = re.sub(r"\W+", "", story.lower())[:80]
        if len(story) > 200 and key not in seen:
            seen.add(key)
            yield Document("stories", key, story)


def _common_forms(texts: Sequence[str]) -> dict[str, str]:
    """Lower-case word -> the way it is usually written inside a sentence (`lily` -> `Lily`, `i` -> `I`)."""
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        for word in re.findall(r"(?<=[a-z,;] )[A-Za-z]+", text):
            counts.setdefault(word.lower(), Counter())[word] += 1
    return {lower: forms.most_common(1)[0][0] for lower, forms in counts.items()}


def _truecase(text: str, forms: dict[str, str]) -> str:
    text = re.sub(r"[a-z]+", lambda match: forms.get(match[0], match[0]), text)
    return re.sub(r"(?:^|[.!?]\"? |\n|(?<= )\")[\"]?[a-z]", lambda match: match[0].upper(), text)


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Tokenised domains: one flat array each for training and for the held-out documents."""

    train: dict[str, npt.NDArray[np.uint16]]
    held_out: dict[str, npt.NDArray[np.uint16]]

    def batch(
        self, weights: dict[str, float], batch_size: int, length: int, rng: np.random.Generator
    ) -> Tensor:  # [batch_size, length + 1] int64
        """Random windows, domains drawn by weight."""
        names = rng.choice(list(weights), size=batch_size, p=np.array(list(weights.values())) / sum(weights.values()))
        return torch.stack([self._window(self.train[str(name)], length, rng) for name in names])

    def held_out_windows(self, domain: str, length: int, limit: int) -> Tensor:  # [at most limit, length + 1] int64
        tokens = self.held_out[domain]
        count = min(limit, len(tokens) // (length + 1))
        return torch.from_numpy(tokens[: count * (length + 1)].astype(np.int64)).view(count, length + 1)

    @staticmethod
    def _window(tokens: npt.NDArray[np.uint16], length: int, rng: np.random.Generator) -> Tensor:
        start = int(rng.integers(len(tokens) - length - 1))
        return torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))


def tokenize(documents: Sequence[Document], tokenizer: Any, cache: Path) -> TokenStore:
    """Token arrays of every domain, each document preceded by the end-of-text token; kept in `cache`."""
    parts: dict[str, list[npt.NDArray[np.uint16]]] = {}
    if not cache.exists():
        end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        for document in documents:
            ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
            side = "held_out" if document.held_out else "train"
            parts.setdefault(f"{side}/{document.domain}", []).append(np.array([end, *ids], dtype=np.uint16))
        temporary = cache.with_suffix(".partial.npz")
        arrays: dict[str, Any] = {key: np.concatenate(value) for key, value in parts.items()}
        np.savez(temporary, **arrays)
        temporary.rename(cache)
    with np.load(cache) as stored:
        return TokenStore(*({d: stored[f"{side}/{d}"] for d in DOMAINS} for side in ("train", "held_out")))


def train_tokenizer(documents: Sequence[Document], vocab_size: int, folder: Path) -> None:
    """Writes a byte-level BPE tokenizer for transformers; domains weigh equally."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Words with one leading space, numbers digit by digit, punctuation runs, newlines with the indentation after them.
    words = Regex(r"\n+ *| ?\p{L}+| ?_?\p{L}+|\d| ?[^\s\p{L}\d]+| +(?! )|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = min(sum(len(d.text) for d in documents if d.domain == domain) for domain in DOMAINS)
    texts = []
    for domain in DOMAINS:
        text = "\n\n".join(d.text for d in documents if d.domain == domain and not d.held_out)
        texts += [text[start : start + 20_000] for start in range(0, len(text), 20_000)][:: max(1, len(text) // share)]
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)
