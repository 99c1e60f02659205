"""What a row of prompts may look like: one table of schemas, told apart by their fields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .prompt_files import Row

SPEAKERS = {"human": "user", "gpt": "assistant"}  # of the older chat files
QUESTIONER, SYSTEM = "user", "system"


@dataclass(frozen=True, slots=True)
class Said:
    """What a row says of its prompt, before ids and categories are filled in."""

    turns: Any  # strings, if the row is sound
    id: Any = None
    category: Any = None
    reference: Any = None
    source: Any = None
    system: Any = None


Reader: TypeAlias = Callable[[Row, str], Said]


@dataclass(frozen=True, slots=True)
class Schema:
    """A layout that is recognised by fields which a row must have."""

    name: str
    fields: tuple[str, ...]
    read: Reader


def read_row(row: Row, where: str) -> Said:
    """What the first schema that fits finds in a row.

    Raises:
        ValueError: none fits, or a field does not hold what the schema says.

    Example:
        >>> read_row({"question": "What is 2 + 3?", "answer": "#### 5"}, "here").turns
        ['What is 2 + 3?']
    """
    # Columns that a table has for other rows are empty in this one.
    given = {name: value for name, value in row.items() if value is not None and value != ""}
    for schema in SCHEMAS:
        if all(name in given for name in schema.fields):
            return schema.read(given, where)
    known = ", ".join(f"{schema.name} ({' '.join(schema.fields)})" for schema in SCHEMAS)
    raise ValueError(
        f"expected the fields of a known schema, got {', '.join(map(str, given)) or 'none'} at {where}; rename the "
        f"field with the text to prompt, or the list of texts to turns; known: {known}"
    )


def message(turn: Any, where: str) -> dict[str, str]:
    """A turn of a chat as templates want it, from either kind of chat file.

    Raises:
        ValueError: it is not a role and a text.

    Example:
        >>> message({"from": "human", "value": "hello"}, "here")
        {'role': 'user', 'content': 'hello'}
    """
    fields = turn if isinstance(turn, Mapping) else {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f"expected messages of a role and a text, got {str(turn)[:60]} in {where}; leave out chats with calls "
            "of tools or pictures"
        )
    return {"role": SPEAKERS.get(role, role), "content": content}


def _turns(id_field: str) -> Reader:
    def read(row: Row, where: str) -> Said:
        category = row.get("category", row.get("task"))
        turns, system = row["turns"], row.get("system")
        return Said(turns, row.get(id_field), category, row.get("reference"), row.get("source"), system)

    return read


def _chat(field: str) -> Reader:
    def read(row: Row, where: str) -> Said:
        """What the user says of it, and what the system is told before; the answers will be the run's own."""
        chat = row[field]
        if not isinstance(chat, Sequence) or isinstance(chat, str):
            raise ValueError(f"expected a list of messages, got {str(chat)[:60]!r} at {where}; make it one")
        messages = [message(turn, where) for turn in chat]
        system = next((one["content"] for one in messages if one["role"] == SYSTEM), None)
        turns = [one["content"] for one in messages if one["role"] == QUESTIONER]
        return Said(turns, row.get("id"), row.get("category", "chat"), None, row.get("source"), system)

    return read


def _human_eval(row: Row, where: str) -> Said:
    return Said([row["prompt"]], row["task_id"], "code", row.get("canonical_solution"))


def _mbpp(row: Row, where: str) -> Said:
    """The task, then the tests that its solution must pass: without them nobody knows the function's name."""
    task, tests = row.get("text", row.get("prompt")), row["test_list"]
    if not isinstance(task, str) or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"expected a task and a list of tests, got {task!r} and {tests!r} at {where}; correct them")
    lines = [task, "Your code should pass these tests:", *tests]
    return Said(["\n".join(lines)], f"mbpp/{row['task_id']}", "code", row.get("code"))


def _gsm8k(row: Row, where: str) -> Said:
    return Said([row["question"]], row.get("id"), row.get("category", "math"), row["answer"])


def _plain(field: str) -> Reader:
    def read(row: Row, where: str) -> Said:
        content = row[field]
        if isinstance(content, list):  # some chat files call their messages a prompt
            return _chat(field)(row, where)
        category = row.get("category", row.get("task"))
        return Said([content], row.get("id"), category, row.get("reference"), row.get("source"))

    return read


# The first that fits is taken, so what has more fields stands before what has fewer of them.
SCHEMAS = (
    Schema("SPEED-Bench", ("question_id", "sub_category", "turns"), _turns("question_id")),
    Schema("Spec-Bench", ("question_id", "turns"), _turns("question_id")),
    Schema("turns", ("turns",), _turns("id")),
    Schema("ShareGPT", ("conversations",), _chat("conversations")),
    Schema("messages", ("messages",), _chat("messages")),
    Schema("MBPP", ("task_id", "test_list"), _mbpp),
    Schema("HumanEval", ("task_id", "prompt"), _human_eval),
    Schema("GSM8K", ("question", "answer"), _gsm8k),
    Schema("prompt", ("prompt",), _plain("prompt")),
    Schema("text", ("text",), _plain("text")),
)
