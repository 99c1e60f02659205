"""Drawings as SVG inside a page: text stays text, colours are the page's, and ids do not collide.

matplotlib writes colours as numbers, which a page cannot change from light to dark. So a drawing uses stand-ins, and
each is replaced by the page's variable for it: `currentColor` for ink, `--rule` for the grid, `--s0`, `--s1`, ... for
the series.
"""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

INK, GRID, PAPER = "#010203", "#d0d1d2", "#fcfdfe"
NUM_COLOURS = 8  # of the style sheet: --s0 to --s7
WIDTH = 5.2  # inches; 72 units each, so that letters keep their size on a phone
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "xtick.color": INK,
    "ytick.color": INK,
}


def colour(series: int) -> str:
    """The stand-in for the colour of a series.

    Example:
        >>> colour(1), colour(9)
        ('#0a0b01', '#0a0b01')
    """
    return f"#0a0b{series % NUM_COLOURS:02x}"


def draw(name: str, label: str, paint: Callable[[Any], None], height: float = 3.2) -> str:
    """The markup of what `paint` draws on matplotlib axes; the same bytes for the same drawing.

    Args:
        name: begins every id in it; no other drawing of the page has it.
        label: what it shows, for those who cannot see it.
        paint: takes the axes.
        height: inches.

    Example:
        >>> markup = draw("line", "A line", lambda axes: axes.plot([1, 2], [3, 4], color=colour(0)))
        >>> markup.startswith('<svg'), "var(--s0)" in markup, 'aria-label="A line"' in markup
        (True, True, True)
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    found = io.StringIO()
    # The reader's own settings do not apply; a letter that matplotlib's font lacks is in the browser's.
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure.subplots())
        figure.savefig(found, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(found.getvalue(), name, label)


MARKS = {  # matplotlib's letters for markers, as shapes around (12, 6)
    "o": '<circle cx="12" cy="6" r="4"/>',
    "s": '<path d="M8 2h8v8h-8z"/>',
    "D": '<path d="M12 1l5 5-5 5-5-5z"/>',
    "^": '<path d="M12 1.5l4.6 8.5h-9.2z"/>',
    "v": '<path d="M12 10.5l4.6-8.5h-9.2z"/>',
    "P": '<path d="M10.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "X": '<path d="M8 4l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z"/>',
    "*": '<path d="M12 .8l1.3 3.6 3.9.2-3 2.4 1 3.8-3.2-2.1-3.2 2.1 1-3.8-3-2.4 3.9-.2z"/>',
}
BAR_MARK = '<path d="M5 1h14v10h-14z"/>'


def swatch(series: int, shape: str) -> str:
    """The mark of a series for a legend.

    Example:
        >>> swatch(1, MARKS["s"])
        '<svg viewBox="0 0 24 12" aria-hidden="true" style="fill:var(--s1)"><path d="M8 2h8v8h-8z"/></svg>'
    """
    return f'<svg viewBox="0 0 24 12" aria-hidden="true" style="fill:var(--s{series % NUM_COLOURS})">{shape}</svg>'


def _inline(document: str, name: str, label: str) -> str:
    """An SVG document as an element of a page."""
    markup = document[document.index("<svg") :].strip()
    markup = re.sub(r"<metadata>.*?</metadata>\s*", "", markup, flags=re.DOTALL)
    opening, rest = markup.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None  # matplotlib always writes one
    rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", rest, flags=re.DOTALL)  # would style the page
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    tags = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name, used), rest)  # what stands between tags is text
    tags = re.sub(r">\s+<", "><", tags)
    return f'<svg role="img" aria-label="{escape(label)}" {box[0]}>{tags}'


def _tag(tag: str, name: str, used: set[str]) -> str:
    """A tag in the page's terms: its colours, ids of the drawing's own, no fonts, two decimals."""
    tag = re.sub(r"\s+", " ", tag).replace("xlink:href", "href")
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font-family:[^;\"]*;?\s*", "", tag)
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"#0a0b(\d\d)", lambda found: f"var(--s{int(found[1], 16)})", tag)
    tag = tag.replace(INK, "currentColor").replace(GRID, "var(--rule)").replace(PAPER, "var(--paper)")
    return re.sub(r"(?<![\w#.-])(-?\d+\.\d\d)\d+", r"\1", tag)
