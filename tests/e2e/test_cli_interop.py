"""The commands import and export."""

import json

import pytest

from tests.toys.bench_folder import bench_folder


def test_what_is_exported_is_imported_again(specdec, tmp_path):
    folder = bench_folder(tmp_path / "bench")
    written = specdec(f"export {folder} --to spec-bench --out {tmp_path}/answers")
    assert written.exit_code == 0, written.output
    files = [line.removeprefix("written: ") for line in written.stdout.splitlines()]
    assert len(files) == 4
    finished = specdec(f"import {files[0]} {files[2]} --json {tmp_path}/i.json")
    assert finished.exit_code == 0 and "1.50" in finished.stdout, finished.output
    result = json.loads((tmp_path / "i.json").read_text())
    assert result["kind"] == "imported" and result["source"] == [files[0], files[2]]


def test_what_was_skipped_is_told(specdec, tmp_path):
    (tmp_path / "server.log").write_text("Decode batch. #running-req: 1, accept len: 2.5, accept rate: 0.5\n")
    finished = specdec(f"import {tmp_path}/server.log")
    assert finished.exit_code == 0 and "2.50" in finished.stdout
    assert finished.stderr.startswith("warning: server.log: means over 1 lines")
    folder = bench_folder(tmp_path / "bench")
    with (folder / "records-0.jsonl").open("a") as file:
        file.write("torn\n")
    assert "skipped, not JSON" in specdec(f"export {folder} --out {tmp_path}/answers").stderr


@pytest.mark.parametrize(
    "line, message",
    [
        ("import {}/nothing", "expected a file to import"),
        ("import {}/bench/bench.json", "expected a file of a known format"),
        ("import {}/bench/bench.json --json {}/nowhere/i.json", "a folder that exists"),
        ("export {}/nothing --out {}/o", "expected a folder with bench.json"),
        ("export {}/bench --out {}/o --to elsewhere", "expected --to spec-bench, got 'elsewhere'"),
    ],
)
def test_mistakes_are_one_line(specdec, tmp_path, line, message):
    bench_folder(tmp_path / "bench")
    finished = specdec(line.replace("{}", str(tmp_path)))
    assert finished.exit_code == 1 and not (tmp_path / "o").exists()
    assert finished.stderr.startswith("error: ") and len(finished.stderr.splitlines()) == 1
    assert message in finished.stderr
