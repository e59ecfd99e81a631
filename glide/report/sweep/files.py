"""Save figures as PNG files, and return them as SVG for a page."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from glide.report.sweep.figures import DOTS


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DOTS, metadata={"Software": None})


def inline_svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG for a page with several figures.

    All ids in the SVG begin with the figure's name, so that they are unique on the page. The SVG needs no other file.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for unwanted in (r"<!--.*?-->\s*", r"<metadata>.*?</metadata>\s*", r"<style.*?</style>\s*"):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    return re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', _OPENING, text, count=1, flags=re.DOTALL)


_OPENING = (
    r'<svg viewBox="\1" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    r' aria-hidden="true" stroke-linejoin="round" stroke-linecap="butt">'
)
