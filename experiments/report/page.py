"""The page: one HTML file that asks for nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..figures.compare_sets import KIND
from ..figures.summary import MALFORMED
from .bench_section import bench_section
from .blocks import Section
from .comparison_section import comparison_section
from .other_sections import compare_section, imported_section, side_by_side
from .profile_section import plan_section, profile_section
from .replay_section import replay_section
from .sources import Skipped, Source, reason

HERE = Path(__file__).parent
TITLE = "Speculative decoding: results"
Builder = Callable[[Mapping[str, Any], str, str], Section]
BUILDERS: Mapping[str, tuple[str, Builder]] = {
    "bench-summary": ("Benchmark", bench_section),
    KIND: ("Two benchmarks compared", comparison_section),
    "compare": ("Methods compared", compare_section),
    "profile": ("Profile", profile_section),
    "plan": ("Plan", plan_section),
    "replay": ("Replay", replay_section),
    "imported": ("Imported", imported_section),
}


def build_page(sources: Sequence[Source], skipped: Sequence[Skipped] = ()) -> tuple[str, list[Skipped]]:
    """The page, and all that it leaves out: what was skipped before and what turns out to be malformed.

    Args:
        sources: what was read; the page has them by kind.
        skipped: what could not be read.

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
    return _render(sections, left_out), left_out


def _sections(sources: Sequence[Source], skipped: Sequence[Skipped]) -> tuple[list[Section], list[Skipped]]:
    sections, left_out = [], list(skipped)
    for index, source in enumerate(sorted(sources, key=lambda source: list(BUILDERS).index(source.kind))):
        words, build = BUILDERS[source.kind]
        try:
            section = _checked(build(source.value, f"{words}: {source.path}", f"{source.kind}-{index}"))
            whose = f"{source.path}: " if len(sources) > 1 else ""
            sections.append(replace(section, warnings=[f"{whose}{line}" for line in section.warnings]))
        except MALFORMED as error:
            left_out.append(Skipped(source.path, f"a {source.kind} that is not as it should be ({reason(error)})"))
    return sections, left_out


def _checked(section: Section) -> Section:
    """The section, once it is known that what the page repeats of it are texts."""
    if isinstance(section.warnings, str):
        raise TypeError("the warnings are one text")
    definitions = {str(name): str(words) for name, words in section.definitions.items()}
    return replace(section, warnings=[str(line) for line in section.warnings], definitions=definitions)


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
