"""What a target is asked to continue, for heads to learn on its answers: from text, JSON lines, a hub or nothing.

A document is held out by the hash of its name, as in `corpus`; what comes from it is for measuring only.
"""

import json
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import TemplateError

from specdec.checkpoints import first_line

from .corpus import Document, read_documents
from .prompt_files import HUB
from .prompt_schemas import message
from .prompts import read_prompts

PIECE_CHARACTERS = 2000  # of a long document is made one opening per so much text
HELD_OUT_IN = 50
TEXT_SUFFIXES = {".txt", ".md"}

Chat: TypeAlias = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Opening:
    """Tokens to be continued."""

    category: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Openings:
    """What the target writes on from, and what is kept for measuring."""

    train: list[Opening]
    held_out: list[Opening]


@dataclass(frozen=True, slots=True)
class OpeningOptions:
    """How texts become openings. Lengths in tokens."""

    count: int
    text_lengths: tuple[int, ...] = (8, 24, 64, 128)  # of openings that are the beginning of a piece of text, in turn
    max_length: int = 512  # of an opening; longer chats are left out
    num_held_out: int = 24
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of text, or a chat up to an answer."""

    category: str
    document: str
    content: str | Chat = field(repr=False)
    is_whole: bool = False  # a text of which not the beginning alone is meant, but all: a question


def read_openings(sources: Sequence[str], tokenizer: Any, options: OpeningOptions) -> Openings:
    """Openings of all categories in turn, and of documents that are held out.

    Args:
        sources: files of text (.txt, .md) or of JSON lines (.jsonl), folders of them, or a folder of corpora (see
            `corpus`); `hub:name` or `hub:name:split` for a dataset of the hub. Lines and rows hold `messages` (or
            `conversations`), `prompt` or `turns`, of which the first is asked as it is, or `text`, of which beginnings
            are continued.
        tokenizer: of the target, with whose chat template chats are written.
        options: how many, and how.

    Raises:
        ValueError: nothing can be read, or nothing would be left to be measured on.

    Example:
        >>> import specdec, tempfile
        >>> file = Path(tempfile.mkdtemp()) / "stories.txt"
        >>> written = file.write_text("There was a dog. It was happy.\\n" * 500)
        >>> openings = read_openings([str(file)], specdec.load_embedded()[2], OpeningOptions(count=5))
        >>> [len(opening.tokens) for opening in openings.train], openings.held_out[0].category
        ([8, 24, 64, 128, 8], 'stories')
    """
    items: dict[str, list[Item]] = defaultdict(list)
    for source in sources:
        for item in _items(source, options):
            items[item.category].append(item)
    sides: tuple[list[list[Item]], list[list[Item]]] = [], []
    for group in items.values():
        held_out = _held_out(group)
        for is_held_out, side in enumerate(sides):
            chosen = [item for item in group if (item.document in held_out) == is_held_out]
            random.Random(options.seed).shuffle(chosen)
            side.append(chosen)
    openings = [_tokenised(in_turn(side), tokenizer, options) for side in sides]
    found = Openings(list(islice(openings[0], options.count)), list(islice(openings[1], options.num_held_out)))
    if not found.train or not found.held_out:
        raise ValueError(
            f"expected texts of at least two documents in {', '.join(sources)}, got {len(found.train)} openings to "
            f"learn on and {len(found.held_out)} to measure with; add some text"
        )
    return found


def openings_of_nothing(tokenizer: Any, prompts: Path, options: OpeningOptions) -> Openings:
    """The beginning-of-text token alone, from which the target writes whatever it likes; measured on a file of prompts.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    begin = tokenizer.bos_token_id
    if begin is None:
        raise ValueError("expected a tokenizer with a beginning-of-text token to write from, got none; pass --data")
    held_out = [Item(prompt.category, prompt.id, prompt.text, is_whole=True) for prompt in read_prompts(prompts)]
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in held_out:
        groups[item.category].append(item)
    measured = islice(_tokenised(in_turn(list(groups.values())), tokenizer, options), options.num_held_out)
    return Openings([Opening("open", [begin])] * options.count, list(measured))


def in_turn(groups: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """One of each group after the other, until all are used up.

    Example:
        >>> list(in_turn(["ad", "b", "cef"]))
        ['a', 'b', 'c', 'd', 'e', 'f']
    """
    for index in range(max(map(len, groups), default=0)):
        yield from (group[index] for group in groups if index < len(group))


def _held_out(group: Iterable[Item]) -> set[str]:
    """Documents by the hash of their names; at least one, if there are several."""
    hashes = {item.document: zlib.crc32(item.document.encode()) for item in group}
    chosen = {name for name, value in hashes.items() if value % HELD_OUT_IN == 0}
    if not chosen and len(hashes) > 1:
        chosen = {min(hashes, key=hashes.__getitem__)}
    return chosen if len(chosen) < len(hashes) else set()


def _tokenised(items: Iterable[Item], tokenizer: Any, options: OpeningOptions) -> Iterator[Opening]:
    turn = 0
    for item in items:
        if not isinstance(item.content, str):
            tokens = _chat_tokens(item, tokenizer)
        elif item.is_whole:
            tokens = tokenizer(item.content)["input_ids"][: options.max_length]
        else:
            length = min(options.text_lengths[turn % len(options.text_lengths)], options.max_length)
            tokens, turn = tokenizer(item.content)["input_ids"][:length], turn + 1
        if 0 < len(tokens) <= options.max_length:
            yield Opening(item.category, list(tokens))


def _chat_tokens(item: Item, tokenizer: Any) -> Sequence[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("expected a tokenizer with a chat template for messages, got none; pass plain text")
    try:
        written = tokenizer.apply_chat_template(item.content, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise ValueError(
            f"expected a chat that the tokenizer's template takes, got {first_line(error)!r} at {item.document}; "
            "correct its messages"
        ) from error
    tokens: Sequence[int] = written["input_ids"]
    return tokens


def _items(source: str, options: OpeningOptions) -> Iterator[Item]:
    if source.startswith(HUB):
        yield from _rows(source, options)
        return
    path = Path(source)
    if (path / "books").is_dir():
        for document in read_documents(path):
            yield from _pieces(document)
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in {*TEXT_SUFFIXES, ".jsonl"})
        if not files:
            raise ValueError(f"expected .txt, .md or .jsonl files in {source!r}, got none; pass another --data")
        for file in files:
            yield from _items(str(file), options)
    elif path.suffix in TEXT_SUFFIXES and path.is_file():
        text = path.read_text(encoding="utf-8")
        for number, piece in enumerate(_pieces(Document(path.stem, path.name, text))):
            yield Item(path.stem, f"{path.name}:{number}", piece.content)
    elif path.suffix == ".jsonl" and path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                yield from _parsed(line, path.stem, f"{path.name}:{number}")
    else:
        raise ValueError(
            f"expected a .txt, .md or .jsonl file, a folder or {HUB}NAME, got {source!r}; pass another --data"
        )


def _pieces(document: Document) -> Iterator[Item]:
    """Pieces of about equal size, that begin where a line does."""
    start = 0
    while start < len(document.text):
        yield Item(document.domain, document.name, document.text[start : start + PIECE_CHARACTERS])
        end = document.text.find("\n", start + PIECE_CHARACTERS)
        start = len(document.text) if end < 0 else end + 1


def _rows(source: str, options: OpeningOptions) -> Iterator[Item]:
    """The first rows of a dataset; twice as many as are wanted, for some may be too long."""
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(islice(rows, 2 * options.count)):
            yield from _read(row, row.get("category") or row.get("task") or name, f"{name}:{number}")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"expected a dataset of the hub, got {source!r}: {error}; pass another --data") from error


def _parsed(line: str, category: str, where: str) -> Iterator[Item]:
    try:
        row = json.loads(line)
        return _read(row, row.get("category") or row.get("task") or category, where)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"expected a JSON object, got {line[:60]!r} at {where}; {error}") from error


def _read(row: Any, category: str, where: str) -> Iterator[Item]:
    """What a line or row holds."""
    document = str(row.get("id") or where)
    chat, prompt = row.get("messages") or row.get("conversations"), row.get("prompt") or row.get("turns")
    if chat := chat or (prompt if isinstance(prompt, list) and not isinstance(prompt[0], str) else None):
        yield from _chat(chat, category, document)
    elif prompt := prompt[0] if isinstance(prompt, list) else row.get("prompt"):
        yield Item(category, document, str(prompt), is_whole=True)
    elif text := row.get("text"):
        yield from _pieces(Document(category, document, str(text)))
    else:
        raise ValueError(f"expected messages, prompt, turns or text, got {sorted(row)} at {where}; rename a field")


def _chat(chat: Any, category: str, document: str) -> Iterator[Item]:
    """The chat up to its last answer, which the target will write; nothing if nobody asks."""
    messages = [message(turn, document) for turn in (chat if isinstance(chat, list) else [chat])]
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if messages:
        yield Item(category, document, messages)
