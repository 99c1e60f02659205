"""Streaming text: whole characters, right colours."""

import io

import pytest
from rich.console import Console

from specdec.events import Round, Seconds, Step
from specdec.experiments.stream import Detokenizer, TokenPrinter


def decode(tokens):
    """A tokenizer of bytes."""
    return bytes(tokens).decode(errors="replace")


def pieces(text_bytes, prompt=b"a"):
    detokenizer = Detokenizer(decode, list(prompt))
    return [*(detokenizer.push(byte) for byte in text_bytes), detokenizer.flush()]


@pytest.mark.parametrize("text", ["plain", "naïve – 猫🙂", "🙂🙂🙂", "\n\n  def f():\n    é"])
def test_pieces_join_to_the_text_and_are_never_broken(text):
    found = pieces(text.encode())
    assert "".join(found) == text
    assert not any("�" in piece for piece in found)
    assert sum(bool(piece) for piece in found) == len(text)  # each character as soon as it is whole


def test_bytes_that_are_no_text_come_out_in_the_end():
    assert "".join(pieces(b"ok\xff")) == "ok�"
    assert "".join(pieces(b"\xf0\x9f")) == "�"


def test_endless_garbage_is_not_held_back_for_ever():
    found = pieces(b"\xff" * 40)
    assert "".join(found[:20])


def test_leading_space_depends_on_the_prompt():
    """Some tokenizers drop the space before the first word of a text; in the middle of one it stays."""

    def join(tokens):
        return " ".join(["Once", "upon", "a", "time"][token] for token in tokens)

    detokenizer = Detokenizer(join, [0])
    assert [detokenizer.push(token) for token in (1, 2, 3)] == [" upon", " a", " time"]


def step(tokens, num_accepted, source="ngram"):
    emitted = Step(0, tuple(tokens), num_accepted, num_drafted=3, num_nodes=3, source=source)
    return Round((emitted,), Seconds(), num_rows=4, is_prefill=False)


def printed(**console_options):
    output = io.StringIO()
    printer = TokenPrinter(Console(file=output, width=200, **console_options), Detokenizer(decode, list(b">")), ">")
    printer.show(step(b"abX", 2))
    printer.show(step(b"cY", 1, source="draft_model"))
    printer.end()
    return output.getvalue()


def test_colours_say_who_proposed():
    text = printed(force_terminal=True, color_system="standard")
    assert "\x1b[32ma\x1b[0m\x1b[32mb\x1b[0m" in text  # ngram
    assert "\x1b[36mc\x1b[0m" in text  # draft_model
    assert "\x1b[32mX" not in text and "\x1b[36mY" not in text  # the target's own


def test_plain_text_has_no_escapes():
    text = printed(color_system=None)
    assert text == ">abXcY\ntokens by ngram 2  target 2  draft_model 1 \n"


def test_nothing_is_printed_when_nothing_came():
    output = io.StringIO()
    TokenPrinter(Console(file=output), Detokenizer(decode, []), "prompt").end()
    assert output.getvalue() == ""
