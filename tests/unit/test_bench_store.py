"""Result folders: what counts after kills, damage and strangers."""

import json
import random
import subprocess
import sys

import pytest

from specdec.experiments.bench.store import HEADER, RecordFile, opened, read_header, read_records, sealed

HEAD = {"kind": "bench", "version": 1, "settings": {}, "prompts": [], "environment": {}}
ARMS = [{"id": "base", "baseline": "base"}, {"id": "fast", "baseline": "base"}]


def record(arm, group=0, repeat=0, process="p1", seconds=1.5):
    rest = {"began": 17.25, "seconds": seconds, "calls": [], "memory": {}}
    requests = [{"prompt": "ä1", "turn": 0, "tokens": [5, 6], "text": 'a "quote"\n'}]
    return {"arm": arm, "group": group, "repeat": repeat, "process": process, "requests": requests, **rest}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / HEADER).write_text(json.dumps({**HEAD, "arms": ARMS}))
    return tmp_path


def write(folder, *lines, name="records-0.jsonl"):
    (folder / name).write_bytes(b"".join(line if isinstance(line, bytes) else sealed(line) for line in lines))


def test_a_line_gives_its_record_back():
    line = sealed(record("fast"))
    assert line.endswith(b'"}\n') and b'"crc32":"' in line[-20:]
    assert opened(line[:-1]) == record("fast")


def test_every_truncation_of_the_last_line_is_dropped_without_a_word(folder):
    kept, last = [record("base"), record("fast")], sealed(record("fast", group=1))
    for length in range(len(last)):
        write(folder, *kept, last[:length])
        assert read_records(folder) == (kept, [])
        with RecordFile(folder / "records-0.jsonl") as file:
            file.append(record("base", group=1))
        assert read_records(folder) == ([*kept, record("base", group=1)], [])


def test_every_flipped_bit_is_noticed(folder):
    line, chance = sealed(record("fast")), random.Random(0)
    for place in range(len(line) - 1):
        flipped = bytearray(line)
        flipped[place] ^= 1 << chance.randrange(8)
        write(folder, record("base"), bytes(flipped), record("base", group=1))
        records, warnings = read_records(folder)
        assert records == [record("base"), record("base", group=1)]
        assert warnings and all("records-0.jsonl:" in line and "skipped" in line for line in warnings)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"hello\n", "records-0.jsonl:2: skipped, not JSON"),
        (b"\n", "skipped, not JSON"),
        (b"\xff\xfe\n", "skipped, not JSON"),
        (b"[" * 3000 + b"\n", "skipped, not JSON"),
        (b"[1]\n", "skipped, no checksum"),
        (b'{"arm": "fast"}\n', "skipped, no checksum"),
        (sealed({"arm": "fast", "crc": 1}), "skipped, no 'group' as a run has it"),
        (sealed(record("other")), "skipped, bench.json names no arm 'other'"),
        (sealed(record("fast", process="p2")), "skipped, the baseline of its process is not there"),
    ],
)
def test_foreign_lines_are_named(folder, line, reason):
    write(folder, record("base"), line, record("fast"))
    records, warnings = read_records(folder)
    assert records == [record("base"), record("fast")]
    assert len(warnings) == 1 and reason in warnings[0]


def test_the_first_line_of_a_key_counts_and_each_process_keeps_its_baseline(folder):
    first, again = record("fast", seconds=1.0), record("fast", process="p2", seconds=2.0)
    write(folder, record("base"), first, record("base", seconds=9.0))
    write(folder, record("base", process="p2"), again, record("fast", 1, process="p2"), name="records-1.jsonl")
    records, warnings = read_records(folder)
    assert records == [record("base"), first, record("base", process="p2")]
    assert warnings == ["records-1.jsonl:3: skipped, the baseline of its process is not there"]


def test_a_run_that_lost_its_baseline_gives_way_to_the_one_that_was_repeated(folder):
    write(folder, record("fast"), record("base", process="p2"), record("fast", process="p2"))
    records, warnings = read_records(folder)
    assert [each["process"] for each in records] == ["p2", "p2"] and len(warnings) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "expected a folder with bench.json"),
        ("{", "expected a header in JSON"),
        ("[]", "another value"),
        ('{"kind": "profile", "version": 1, "arms": []}', "got {'kind': 'profile', 'version': 1}"),
        ('{"kind": "bench", "version": 2, "arms": []}', "'version': 2"),
        (json.dumps({**HEAD, "arms": [1]}), "got another 'arms'"),
        (json.dumps({**HEAD, "arms": [{}]}), "got another 'arms'"),
        (json.dumps({**HEAD, "arms": [], "environment": 3}), "got another 'environment'"),
        ('{"kind": "bench", "version": 1, "arms": []}', "got another 'settings'"),
    ],
)
def test_a_folder_without_our_header_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / HEADER).write_text(content)
    with pytest.raises(ValueError) as error:
        read_header(tmp_path)
    assert message in str(error.value)


def test_a_file_has_one_writer(folder):
    path = folder / "records-0.jsonl"
    with RecordFile(path):
        with pytest.raises(ValueError, match="no other run writes to"):
            RecordFile(path)
        code = f"from specdec.experiments.bench.store import *; RecordFile(Path({str(path)!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode and "no other run writes to" in other.stderr
    RecordFile(path).close()
