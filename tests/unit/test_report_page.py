"""The page: self-contained, escaped, the same bytes for the same results, and whole whatever the results lack."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from specdec.experiments.figures.compare_sets import KIND, compare_sets
from specdec.experiments.report import plots
from specdec.experiments.report.page import build_page
from specdec.experiments.report.sources import Skipped, Source
from specdec.experiments.report.svg import colour, draw
from tests.project import ROOT
from tests.toys.bench_records import a_sweep
from tests.toys.results import IMPORTED, PLAN, PROFILE, REPLAY
from tests.toys.summaries import bench_summary

SUMMARY = bench_summary(num_prompts=6)
SMALL = bench_summary({"ngram": (0.6, 0.0, 0.01)}, (2, 4), 3)
COMPARE = json.loads((ROOT / "experiments/results/compare_embedded_cpu.json").read_text())
COMPARED = compare_sets(*a_sweep(num_arms=1, num_prompts=3), *a_sweep(num_arms=1, num_prompts=3))
EVERY = [
    Source("s.json", "bench-summary", SMALL), Source("c.json", "compare", COMPARE),
    Source("f.json", "profile", PROFILE), Source("p.json", "plan", PLAN), Source("r.json", "replay", REPLAY),
    Source("i.json", "imported", IMPORTED), Source("b against a", KIND, COMPARED),
]  # fmt: skip
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Elements in order, whether they nest, and ids."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.ids, self.links = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in {"href", "src", "action", "srcset", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def count(self, tag, **attributes):
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.seen)


def page_of(*sources, **options):
    page, left_out = build_page(sources, **options)
    assert left_out == list(options.get("skipped", ()))
    return page


def test_the_page_is_one_file_that_nests_and_asks_for_nothing():
    page = page_of(*EVERY)
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.links and all(link.startswith("#") for link in reader.links)
    assert {link[1:] for link in reader.links} | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)
    assert reader.count("script") == reader.count("img") == reader.count("link") == 0
    assert "@import" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page and 'name="viewport"' in page


def test_plots_and_tables_are_named_and_follow_the_colours_of_the_page():
    page = page_of(*EVERY)
    reader = Reader(page)
    drawings = [found for tag, found in reader.seen if tag == "svg" and found.get("role") == "img"]
    assert len(drawings) >= 15 and all(len(found["aria-label"]) > 20 for found in drawings)
    assert all(found.get("scope") in {"col", "row"} for tag, found in reader.seen if tag == "th")
    drawn = "".join(re.findall(r'<svg role="img".*?</svg>', page, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()  # a fixed colour would be lost in the dark
    assert "currentColor" in drawn and "font-family" not in drawn and "var(--s0)" in drawn


def test_a_benchmark_is_answered_and_drawn():
    page = page_of(Source("s.json", "bench-summary", SUMMARY))
    for words in ("Which drafter?", "Which length?", "By how much?", "How sure?", "Is the text the same?"):
        assert page.index(words) < page.index("<table>")
    for words in (
        "Speed-up over plain decoding", "Speed-up against draft length", "Tokens per step against draft length",
        "Survival", "Conditional acceptance", "Unconditional acceptance", "Tokens per step by category",
        "Where the time of a token goes", "Where texts part", "TTFT", "TPOT", "Texts that differ", "Peak memory",
        "Settings", "Environment", "Definitions", "draft_acceptance_rate", "0123456789ab",
    ):  # fmt: skip
        assert words in page, words


def test_the_same_results_give_the_same_bytes():
    assert page_of(*EVERY) == page_of(*copy.deepcopy(EVERY))


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x_1$ & _y", "字\x07é"]
)
def test_names_from_results_are_text(evil):
    text = json.dumps(SMALL).replace('"ngram', f'"{json.dumps(evil)[1:-1]} ngram')
    summary = json.loads(text.replace("story", json.dumps(evil)[1:-1]))
    summary["settings"][evil] = summary["definitions"][evil] = evil
    summary["warnings"] = [evil]
    reader = Reader(page_of(Source(evil, "bench-summary", summary), skipped=[Skipped(evil, evil)]))
    assert reader.count("script") == reader.count("img") == 0
    assert len(reader.ids) == len(set(reader.ids))


def test_a_name_without_a_letter_in_the_font_is_drawn_as_text():
    markup = draw("x", "label", lambda axes: axes.set_title("字 $a$ <b>"))
    assert "字 $a$ &lt;b&gt;" in markup


def test_series_beyond_the_palette_begin_again():
    assert colour(0) == colour(8)


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.kind)
def test_each_kind_stands_alone(source):
    assert source.path in page_of(source)


def spoilt(value, depth):
    """The value with one place of it gone or of another type, for each place; a list is spoilt in its last item."""
    if isinstance(value, dict) and depth:
        for name, each in value.items():
            yield {key: other for key, other in value.items() if key != name}
            for wrong in (None, "text", *spoilt(each, depth - 1)):
                yield {**value, name: wrong}
    if isinstance(value, list) and value and depth:
        for wrong in (None, *spoilt(value[-1], depth - 1)):
            yield [*value[:-1], wrong]


@pytest.fixture
def unsaved(monkeypatch):
    """Plots are painted, not written, which takes long."""

    def paint_only(name, label, paint, height=3.0):
        paint(Figure().subplots())
        return f"<svg>{name}</svg>"

    monkeypatch.setattr(plots, "draw", paint_only)


@pytest.mark.slow
@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.kind)
def test_malformed_results_are_named_not_raised(unsaved, source):
    good = Source("good.json", "replay", {**REPLAY, "rows": []})
    for value in spoilt(source.value, 4 if source.kind == "bench-summary" else 3):
        page, left_out = build_page([good, Source("bad.json", source.kind, value)])
        assert [each.path for each in left_out] in ([], ["bad.json"])
        assert ("bad.json" in page) and Reader(page)


def test_figures_that_are_null_are_dashes():
    """As an arm of transformers' own: it has times and texts, but no steps."""
    summary = copy.deepcopy(SMALL)
    overall = summary["arms"][1]["overall"]
    kept = {"num_prompts", "num_tokens", "tokens_per_second", "speedup", "text", "degeneracy"}
    summary["arms"][1] |= {"system": "transformers", "overall": {k: overall[k] if k in kept else None for k in overall}}
    assert "transformers ngram" in page_of(Source("s.json", "bench-summary", summary))


def test_nothing_to_show_is_refused_in_one_line():
    with pytest.raises(ValueError, match="expected result files, got none that can be shown: x.json: not JSON"):
        build_page([], [Skipped("x.json", "not JSON")])
    with pytest.raises(ValueError, match=r"no arm"):
        build_page([Source("s.json", "bench-summary", {**SMALL, "arms": []})])


def test_warnings_and_what_was_left_out_stand_before_everything():
    summary = {**SMALL, "warnings": ["2 prompts: no intervals"]}
    page = page_of(Source("s.json", "bench-summary", summary), skipped=[Skipped("x.json", "not JSON")])
    for words in ("2 prompts: no intervals", "Left out: x.json: not JSON"):
        assert page.index(words) < page.index("Which drafter?")


def compared_page(**changes):
    """The page of a sweep and of one that is faster in one arm, on an environment with these changes."""
    header, records = a_sweep(num_arms=3, num_prompts=10)
    faster = [run | {"seconds": run["seconds"] / 1.25} if run["arm"] == "k2" else run for run in records]
    other = header | {"environment": header["environment"] | changes}
    return page_of(Source("b against a", KIND, compare_sets(header, records, other, faster)), *EVERY[:1])


def test_two_benchmarks_are_compared_with_significance():
    page = compared_page(commit="def")
    assert "draft_model k2: 1.25 times the speed-up (1.25–1.25)." in page
    assert "No change beyond chance is shown in the other" in page
    tables = dict(re.findall(r"<caption>(.*?)</caption>(.*?)</table>", page, re.DOTALL))
    for caption in ("Tokens per second", "Speed-up"):
        (marked,) = re.findall(r'<tr class="marked">(.*?)</tr>', tables[caption])
        assert "draft_model k2" in marked and "0.0020" in marked and "1.25 (1.25–1.25)" in marked
    assert '<tr class="marked">' not in tables["Tokens per step"] and "abc → def" in page
    places = [page.index(f"<h2>{words}") for words in ("Benchmark: s.json", "Two benchmarks compared: b against a")]
    assert places == sorted(places)


def test_times_of_other_machines_are_no_changes():
    page = compared_page(cpu="faster")
    assert "No: cpu differ" in page and "These times do not compare: see the notes." in page
    assert "times are not comparable: other cpu" in page and "times the tokens per second (" not in page
    assert "draft_model k2: 1.25 times the speed-up (1.25–1.25)." in page


def test_benchmarks_without_a_common_arm_are_not_compared():
    header, records = a_sweep(num_arms=1, num_prompts=3)
    found = compare_sets(header, records, header | {"arms": []}, [])
    page = page_of(Source("b against a", KIND, found), EVERY[0])
    assert "Not known: not comparable: no arm of one set is in the other." in page
    assert "only in the first" in page
    found = compare_sets(header, records, header, [])
    assert "Not known: no arm was measured in both." in page_of(Source("b against a", KIND, found), EVERY[0])


def test_batch_sizes_are_held_side_by_side():
    other = bench_summary({"ngram": (0.6, 0.0, 0.01)}, (2, 4), 3, cell="embedded bfloat16 greedy batch 4")
    arms = [{**arm, "id": f"b{arm['id']}", "baseline": "b00000000", "batch_size": 4} for arm in other["arms"]]
    page = page_of(Source("s.json", "bench-summary", {**SMALL, "arms": [*SMALL["arms"], *arms]}))
    assert '<th scope="col">batch 4</th>' in page and page.count("Which drafter?") == 2


def test_trees_are_shown_by_depth_and_rank_and_drafts_by_source():
    summary = copy.deepcopy(SMALL)
    counts = [[{"offered": 10, "accepted": 6}, {"offered": 10, "accepted": 2}], [{"offered": 0, "accepted": 0}]]
    summary["arms"][1]["overall"] |= {
        "acceptance_by_depth_and_rank": counts,
        "by_source": {n: {"num_steps": 1, "num_drafted": 2, "num_accepted": 1} for n in ("suffix", "eagle3")},
    }
    page = page_of(Source("s.json", "bench-summary", summary))
    assert "60 % of 10" in page and "rank 2" in page and "Drafts by source" in page
