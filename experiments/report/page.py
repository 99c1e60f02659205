"""The page: one HTML file that asks for nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bench_section import bench_section
from .blocks import Section, Table
from .other_sections import compare_section, imported_section, side_by_side
from .profile_section import plan_section, profile_section
from .replay_section import replay_section
from .sources import Skipped, Source
from .words import estimate, number, short

HERE = Path(__file__).parent
TITLE = "Speculative decoding: results"
# What a file of the right kind and the wrong inside makes its reader raise.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
Builder = Callable[[Mapping[str, Any], str, str], Section]
BUILDERS: Mapping[str, tuple[str, Builder]] = {
    "bench-summary": ("Benchmark", bench_section),
    "compare": ("Methods compared", compare_section),
    "profile": ("Profile", profile_section),
    "plan": ("Plan", plan_section),
    "replay": ("Replay", replay_section),
    "imported": ("Imported", imported_section),
}
Row = Mapping[str, Any]


def build_page(
    sources: Sequence[Source], skipped: Sequence[Skipped] = (), comparisons: Sequence[Row] = ()
) -> tuple[str, list[Skipped]]:
    """The page, and all that it leaves out: what was skipped before and what turns out to be malformed.

    Args:
        sources: what was read.
        skipped: what could not be read.
        comparisons: rows that hold two benchmarks against each other: "arm", "metric", "a", "b", "ratio", "low",
            "high", "p_value", "note".

    Raises:
        ValueError: there is nothing to show.
    """
    sections, left_out = _sections(sources, skipped)
    if not sections:
        reasons = "; ".join(f"{each.path}: {each.reason}" for each in left_out)
        raise ValueError(f"expected result files, got none that can be shown: {reasons}; pass what `specdec` wrote")
    shown = [source for source in sources if source.path not in {each.path for each in left_out}]
    armed = [source for source in shown if source.kind in ("bench-summary", "imported")]
    if len({source.kind for source in armed}) > 1:
        sections.append(Section("Measured here and elsewhere", [side_by_side(armed)]))
    if comparisons:
        sections.insert(0, Section("Two result sets compared", [comparison_table(comparisons)]))
    return _render(sections, left_out), left_out


def _sections(sources: Sequence[Source], skipped: Sequence[Skipped]) -> tuple[list[Section], list[Skipped]]:
    sections, left_out = [], list(skipped)
    for index, source in enumerate(sources):
        words, build = BUILDERS[source.kind]
        try:
            sections.append(_checked(build(source.value, f"{words}: {source.path}", f"{source.kind}-{index}")))
        except MALFORMED as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            left_out.append(Skipped(source.path, f"a {source.kind} that is not as it should be ({reason})"))
    return sections, left_out


def _checked(section: Section) -> Section:
    """The section, once it is known that what the page repeats of it are texts."""
    if isinstance(section.warnings, str):
        raise TypeError("the warnings are one text")
    definitions = {str(name): str(words) for name, words in section.definitions.items()}
    return replace(section, warnings=[str(line) for line in section.warnings], definitions=definitions)


def comparison_table(rows: Sequence[Row]) -> Table:
    """Two result sets, figure by figure: the ratio, its interval, and how likely it is to be chance."""
    shown = [
        (
            str(row["arm"]),
            str(row["metric"]),
            short(row.get("a")),
            short(row.get("b")),
            estimate(row),
            number(row.get("p_value"), 4),
            str(row.get("note") or ""),
        )
        for row in rows
    ]
    columns = ("arm", "figure", "first", "second", "second / first", "p", "note")
    note = "p: how often resampled prompts alone would make a ratio as far from 1."
    return Table("Differences between the two result sets", columns, shown, note, frozenset({"figure", "note"}))


def _render(sections: Sequence[Section], left_out: Sequence[Skipped]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, auto_reload=False
    )
    definitions = {name: words for section in sections for name, words in section.definitions.items()}
    return environment.get_template("template.html.j2").render(
        title=TITLE,
        subtitle=f"{len(sections)} {'result' if len(sections) == 1 else 'results'}, drawn by specdec report.",
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        sections=sections,
        warnings=[line for section in sections for line in section.warnings],
        skipped=left_out,
        definitions=definitions,
    )
