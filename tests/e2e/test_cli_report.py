"""`specdec report`: what it writes and says, and the page in a browser."""

import json
from html import escape

import matplotlib.image
import numpy as np
import pytest

from tests.project import ROOT
from tests.toys.browser import DARK, browser, measured  # noqa: F401 - a fixture
from tests.toys.results import PLAN, PROFILE
from tests.toys.summaries import bench_summary

SUMMARY = bench_summary(num_prompts=6)
COMPARE = ROOT / "experiments/results/compare_embedded_cpu.json"
# The page as it is in a window of any width, and how wide things came out there.
FRAME = """<!DOCTYPE html><body style="margin: 0"><iframe srcdoc="{page}" width="{width}" height="900" frameborder="0">
</iframe><script>
onload = () => {{
  const inner = document.querySelector('iframe').contentWindow;
  const boxesOf = name => [...inner.document.querySelectorAll(name)].map(each => each.getBoundingClientRect());
  const boxes = boxesOf('figure > svg'), letters = boxesOf('figure > svg text').map(b => Math.min(b.width, b.height));
  document.title = `drawn=${{boxes.filter(b => b.width > 200 && b.height > 60).length}} plots=${{boxes.length}} ` +
    `page=${{inner.document.documentElement.scrollWidth}} letters=${{Math.max(...letters)}} ` +
    `asked=${{inner.performance.getEntriesByType('resource').length}}`;
}};
</script>"""


@pytest.fixture
def results(folders, monkeypatch, tmp_path):
    """An empty folder to work in, with a benchmark of which only the summary is left."""
    (tmp_path / "specdec-bench").mkdir()
    (tmp_path / "specdec-bench/summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path


@pytest.fixture
def report(specdec, results, monkeypatch):
    monkeypatch.chdir(results)
    return lambda *words: specdec("report", *map(str, words))


def test_without_arguments_the_benchmark_at_hand_is_drawn(report, results):
    finished = report()
    assert finished.exit_code == 0, finished.output
    page = (results / "report.html").read_text()
    assert "Which drafter?" in page and f"{len(page.encode()) / 1024:.0f} KiB" in finished.stdout
    assert finished.stderr == ""


def test_without_a_benchmark_one_line_says_how_to_make_one(report, results):
    (results / "specdec-bench").rename(results / "elsewhere")
    finished = report()
    assert finished.exit_code == 1 and len(finished.stderr.splitlines()) == 1
    assert "run `specdec bench` first" in finished.stderr and not (results / "report.html").exists()


def test_what_is_no_result_is_left_out_by_name(report, results):
    (results / "cut.json").write_text('{"kind": "plan", "ro')
    finished = report("specdec-bench", "cut.json", "nowhere.json", COMPARE, "--out", "all.html")
    assert finished.exit_code == 0, finished.output
    assert [line.split(": ")[:2] for line in finished.stderr.splitlines()] == [
        ["skipped", "cut.json"], ["skipped", "nowhere.json"],
    ]  # fmt: skip
    page = (results / "all.html").read_text()
    assert "Left out: cut.json: not JSON, or cut short" in page and "specdec draft_model" in page


MISTAKES = {
    "nothing that can be shown": (("nowhere.json",), "none that can be shown: nowhere.json: there is no such file"),
    "no such folder": (("specdec-bench", "--out", "nowhere/r.html"), "expected a file in a folder that exists"),
    "out is a folder": (("specdec-bench", "--out", "specdec-bench"), "pass another --out FILE"),
    "out is a result": (("old.json", "--out", "old.json"), "which is one of them"),
}


@pytest.mark.parametrize("words, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(report, results, words, message):
    (results / "old.json").write_text(json.dumps(PLAN))
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    finished = report(*words)
    assert finished.exit_code == 1 and message in finished.stderr
    assert finished.stderr.startswith("error: ") and len(finished.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_a_page_that_fails_leaves_the_old_one(report, results, monkeypatch):
    (results / "report.html").write_text("old")
    monkeypatch.setattr("specdec.cli_report.build_page", lambda *sources: (_ for _ in ()).throw(ValueError("broken")))
    assert report().exit_code == 1
    assert (results / "report.html").read_text() == "old"


@pytest.fixture
def page(report, results):
    for name, value in (("profile", PROFILE), ("plan", PLAN)):
        (results / f"{name}.json").write_text(json.dumps(value))
    finished = report(".", COMPARE)
    assert finished.exit_code == 0, finished.output
    return results / "report.html"


def average(path):
    """The mean brightness of a picture, and how many colours stand out of grey in it."""
    pixels = matplotlib.image.imread(path)[..., :3]  # [height, width, 3] in 0..1
    vivid = pixels[(pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.35]
    return float(pixels.mean()), len(np.unique((vivid * 7).round(), axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_a_browser_draws_every_plot_within_the_window(browser, page, width):  # noqa: F811
    text = page.read_text()
    framed = page.with_name("framed.html")
    framed.write_text(FRAME.format(page=escape(text), width=width))
    elements = browser.elements(framed)
    assert measured(elements, "drawn") == measured(elements, "plots") == text.count("<figure") > 12
    assert measured(elements, "page") <= width  # tables scroll, the page does not
    assert measured(elements, "letters") >= 8 and measured(elements, "asked") == 0


@pytest.mark.slow
def test_a_browser_shows_it_light_and_dark(browser, page):  # noqa: F811
    light, num_colours = average(browser.screenshot(page, 1280, 3000))
    dark, num_dark_colours = average(browser.screenshot(page, 1280, 3000, *DARK))
    assert light > 0.85 and dark < 0.25
    assert num_colours >= 4 and num_dark_colours >= 4  # the lines and marks of the plots


@pytest.mark.slow
def test_a_browser_prints_it(browser, page):  # noqa: F811
    paper = page.with_name("report.pdf")
    browser.run(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 50_000
