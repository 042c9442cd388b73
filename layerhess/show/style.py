"""The colours of all figures, and the conversion of figures to SVG for pages with a light and a dark theme."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

INK = "#1c2733"  # text
MUTED = "#5d6b7a"  # axes and secondary text
RULE = "#d8dee6"  # grid
TOP = "#1f6feb"  # largest eigenvalues
BOTTOM = "#d1602b"  # smallest eigenvalues
WRONG = "#c62828"  # whatever has not converged
PAPER = "#fefefe"  # background

# Told apart by all kinds of colour vision (Okabe & Ito 2008); in grey, by marks, lines and hatches.
BLUE, VERMILION, ORANGE, SKY = "#0072b2", "#d55e00", "#e69f00", "#56b4e9"
ALARM = "#a84300"  # vermilion for text: 6.2 to 1 on white
QUIET = "#b3bdc8"  # lines among which none is meant

# In a page each colour is a variable, so that the figure follows the page's theme.
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", TOP: "top", BOTTOM: "bottom", WRONG: "wrong", PAPER: "paper"}


class Picture(Figure):
    """A matplotlib figure that a notebook shows without any backend or pyplot state."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=110)
        return stream.getvalue()


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element for a page: its text as text, its colours as CSS variables, no addresses.

    Args:
        figure: drawn with the colours of this module.
        label: what it shows, for readers who cannot see it; must be escaped already.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", label.lower())[:24]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
