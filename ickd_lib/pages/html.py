"""The parts of a page that is one file: tables, figures and pictures inside it, no script, and all text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ickd_lib import plots

SIDE = 96  # largest side of a picture, in pixels

# Browsers load nothing from anywhere for such a page, and run no script.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1a1a1a; --soft: #5b6068; --line: #d9dce1; --bar: #0173b2;
  --raised: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ground: #111111; --ink: #e6e6e6; --soft: #a2a8b2; --line: #33373d;
  --bar: #4aa3d8; --raised: #1b1d20; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .4rem 0; max-width: 46rem; }
.note { color: var(--soft); }
.scroll { overflow-x: auto; min-width: 100%; width: max-content; max-width: calc(100vw - 2.5rem);
  margin: .75rem 0 .75rem 50%; transform: translateX(-50%); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: middle; }
td { white-space: nowrap; }
td:last-child { white-space: normal; min-width: 7rem; }
th { font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, .words td { text-align: left; }
td:first-child, .words td { max-width: 26rem; white-space: normal; overflow-wrap: break-word; }
.bar { display: inline-block; width: 6rem; height: .6rem; margin-left: .5rem; background: var(--raised);
  border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
figure { margin: .75rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: .75rem 0; }
.line { display: flex; flex-wrap: wrap; gap: .6rem; padding: .75rem 0; border-top: 1px solid var(--line); }
.tile { width: 6.6rem; font-size: .8rem; line-height: 1.3; }
.tile img { display: block; width: 4.5rem; height: 4.5rem; object-fit: contain; image-rendering: pixelated;
  background: var(--raised); border-bottom: 4px solid var(--edge, transparent); margin-bottom: .25rem; }
.query { width: 12rem; font-size: .85rem; }
.query img { width: 6rem; height: 6rem; }
.same { --edge: #0173b2; } .other { --edge: #d55e00; }
"""


class Markup(str):
    """Text that is HTML already. Any other text is escaped where it is put into a page."""


def escaped(value: Any) -> Markup:
    """Return a value as HTML, with all characters escaped that are special in HTML."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(tag: str, *inside: Any, of: str = "") -> Markup:
    """Return an element with its contents one after the other, and the CSS class `of`."""
    mark = f' class="{of}"' if of else ""
    return Markup(f"<{tag}{mark}>{''.join(map(escaped, inside))}</{tag}>")


def section(title: str, *blocks: Any) -> Markup:
    """Return a section: its heading, and its blocks, of which texts are paragraphs."""
    return element("section", element("h2", title), *(_block(block) for block in blocks))


def _block(block: Any) -> Markup:
    return block if isinstance(block, Markup) else element("p", block)


def note(text: str) -> Markup:
    """Return a paragraph that is less prominent."""
    return element("p", text, of="note")


def table(heading: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: bool = False) -> Markup:
    """Return a table. All columns but the first are aligned to the right, as numbers are, unless they are `words`."""
    head = element("tr", *(element("th", cell) for cell in heading))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    found = element("table", element("thead", head), element("tbody", *body), of="words" if words else "")
    return element("div", found, of="scroll")


def bar(share: float) -> Markup:
    """Return a fraction in percent, with a bar of this length beside it."""
    return Markup(f'{100 * share:.1f}<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>')


def plain(names: Sequence[str]) -> list[str]:
    """Return names that matplotlib draws as they are: it reads text between dollar signs as mathematics."""
    return [name.replace("$", r"\$") for name in names]


def figure(draw: Callable[[], Figure], description: str, *, photographs: bool = False) -> Markup:
    """Return a figure, once for a light and once for a dark page, of which the browser displays one.

    Args:
        draw: draws the figure with matplotlib's current settings.
        description: what the figure shows, for those who cannot see it.
        photographs: whether the figure is a JPEG picture instead of SVG, because it contains photographs.
    """
    light, dark = (_drawn(draw, theme, photographs) for theme in (False, True))
    return Markup(
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{html.escape(description)}"></picture></figure>'
    )


def _drawn(draw: Callable[[], Figure], dark: bool, photographs: bool) -> str:
    file = io.BytesIO()
    with mpl.rc_context():
        plots.use(dark)
        mpl.rcParams["svg.hashsalt"] = "ickd"  # the same figure gives the same text
        drawn = draw()
        if photographs:
            drawn.savefig(file, format="jpeg", dpi=110, pil_kwargs={"quality": 85})
        else:
            drawn.savefig(file, format="svg", metadata={"Date": None})
        plt.close(drawn)
    kind = "jpeg" if photographs else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def tile(pixels: Tensor, *lines: str, of: str = "") -> Markup:
    """Return a picture with lines of text below it.

    Args:
        pixels: uint8, shape [3, h, w]; made smaller where a side is above SIDE.
        lines: the text, of which the first line describes the picture.
        of: further CSS classes of the tile.
    """
    from PIL import Image

    image = Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    picture = Markup(f'<img src="{source}" alt="{html.escape(lines[0] if lines else "")}">')
    return element("div", picture, *(element("div", line) for line in lines), of=f"tile {of}".strip())


def page(title: str, *blocks: Any) -> str:
    """Return the whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([element("h1", title), *map(_block, blocks)])
        + "\n</body>\n</html>\n"
    )
