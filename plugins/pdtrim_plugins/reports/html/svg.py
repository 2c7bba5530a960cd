"""Pictures as SVG that take their colours and font from the page; matplotlib draws them in two widths."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pdtrim_core import PdtrimError

COLOURS = {
    "ink": "#101113",
    "soft": "#202123",
    "line": "#303133",
    "surface": "#404143",
    "accent": "#505153",
    "tint": "#606163",
    "warm": "#707173",
    "quiet": "#808183",
}
"""The colours of the page's style by name. Pictures are drawn in placeholder colours, then replaced by the page's."""
INK, SOFT, LINE, SURFACE, ACCENT, TINT, WARM, QUIET = COLOURS.values()

TEXT, SMALL = 12.0, 11.0
"""Font sizes in pixels: of labels, and of the marks of an axis."""
WIDE, NARROW = 780, 340
"""The widths in which each picture is drawn, in pixels: for a wide screen, and for a phone."""

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pdtrim",
    "text.parse_math": False,
    "font.size": TEXT,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": SMALL,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.labelcolor": SOFT,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
}


@dataclass(frozen=True)
class Picture:
    """A picture in two widths, with a description for readers who cannot see it."""

    wide: str
    narrow: str
    title: str
    description: str


class Sheet:
    """What a picture is drawn on: its width in pixels is given, its height follows from its panels."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.is_narrow = width == NARROW
        self.figure: Any = None

    def panels(self, *heights: float, left: float = 54, top: float = 26, bottom: float = 40, gap: float = 16) -> list[Any]:
        """Return axes one below the other, of these heights in pixels; `top` has room for the legend, `bottom` for the axis."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - listings must not load it

        right = 12
        height = top + sum(heights) + gap * (len(heights) - 1) + bottom
        self.figure = Figure(figsize=(self.width / 72, height / 72), dpi=72)
        made: list[Any] = []
        below = height - top
        for number, panel in enumerate(heights):
            below -= panel
            place = (left / self.width, below / height, (self.width - left - right) / self.width, panel / height)
            axes = self.figure.add_axes(place, sharex=made[0] if made else None)
            axes.tick_params(labelbottom=number == len(heights) - 1)
            made.append(axes)
            below -= gap
        return made

    def legend_height(self, labels: Sequence[str]) -> float:
        """Return the height of a legend of these labels, with a margin."""
        return 12 + 18 * -(-len(labels) // self._columns(labels)) if labels else 4

    def _columns(self, labels: Sequence[str]) -> int:
        """Return how many columns of a legend fit: the widest label decides."""
        return max(1, min(len(labels), int((self.width + 18) // (6.2 * max(map(len, labels)) + 38))))

    def legend(self, handles: Sequence[Any]) -> None:
        """Put the legend into the strip above the panels, in as many columns as the width has room for."""
        self.figure.legend(
            handles=list(handles),
            loc="upper left",
            bbox_to_anchor=(0, 1 - 4 / (self.figure.get_figheight() * 72)),
            ncols=self._columns([handle.get_label() for handle in handles]),
            handletextpad=0.5,
            columnspacing=1.6,
            handlelength=1.4,
        )


def picture(name: str, draw: Callable[[Sheet], None], *, title: str, description: str) -> Picture:
    """Draw a picture in both widths. `name` makes its ids differ from those of the other pictures on the page."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - listings must not load it
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise  # it is there, and lacks something itself
        raise PdtrimError(
            "report 'html' draws with matplotlib, which is not installed: pip install matplotlib, then pdtrim-core report RUN"
        ) from None
    texts = []
    for width in (WIDE, NARROW):
        sheet = Sheet(width)
        with mpl.rc_context():
            # Settings of the user's own are ignored, so that the same run gives the same bytes.
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            draw(sheet)
            file = io.StringIO()
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            sheet.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        texts.append(_of_page(file.getvalue(), f"{name}-{width}"))
    wide, narrow = texts
    return Picture(wide, narrow, title, description)


def _of_page(svg: str, name: str) -> str:
    """Return matplotlib's output as a part of a page: without XML head, with the page's colours and font, and unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    for colour, replacement in COLOURS.items():
        svg = svg.replace(replacement, f"var(--{colour})")
    return re.sub(r"\n\s*", "\n", svg).strip()
