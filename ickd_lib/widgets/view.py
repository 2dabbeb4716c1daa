"""The base of all explorers: a view that displays blocks, and a box of controls that displays errors."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw
import matplotlib as mpl
import matplotlib.pyplot as plt
import torch.nn.functional as F
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from traitlets import Dict, Unicode

from ickd_lib import plots
from ickd_lib.runtime import InputError

HERE = Path(__file__).parent
# Below the picture of an explorer in a saved notebook. The rule hides what JupyterLab writes in place of a widget that
# has no kernel; view.css hides the sentence where the explorer is live.
STATIC = """<p class="ickd-static">This is a picture of the explorer. To use it, run the cells of this notebook.</p>
<style>.jp-OutputArea-child:has(.ickd-static) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*)) { display: none; }
</style>"""
SCRIPTS = ("blocks.js", "choices.js", "view.js")
TILE = 64  # largest side in pixels of an image that is sent to the page
Block = dict[str, Any]


class View(anywidget.AnyWidget):
    """Display blocks on a page and report clicks. The blocks are not part of the state that a notebook saves.

    A block is a dictionary with a "kind". Where it has a title, `tip` explains it, and `tips` explains headings and
    names of rows, by these names:

    - row: `blocks` side by side.
    - column: `blocks` one below the other.
    - text: `text` with a `tone`, "note" or "error" (screen readers announce errors).
    - crumbs: a path of `items`, each with `text` and `key`. All but the last are buttons with the event "crumb".
    - tiles: images with text. The bytes of the message contain N RGB images of `shape` (N, height, width). Each of
      `tiles` has `at` (its position among the N images), `key`, `lines` of text (the first one follows a square of
      `colour`, if there is one) and a `label` for screen readers. `tone` is "query", "image", "same", "other" or
      "plain". Where there is an `event`, the tiles are buttons, except for those that are marked as `plain`. `start` is
      the position of the first image among the bytes of the message; by default they begin with it. `folded` is a
      name: then only one row of tiles is displayed until it is opened. `pages` is the number of this page, from 0, and
      the number of pages; the buttons for other pages have the event "page". A line that begins with ✓ or ✗ has the
      colour of right or wrong.
    - verdicts: predictions for one sample. Each of `items` has `who`, `name` (the class), its `colour`, `number` (the
      probability as text), `right` (None without a label), and `tip`, an explanation of `who`.
    - bars: one row for each of `rows` (`name`, `colour`, `marked`, `values`), with one bar and one number for each of
      `columns`. The lengths are proportional to the values; the largest value of the block has the full length.
    - table: `columns` and `rows` of texts.
    - choices: a table to filter, sort and choose from, with `columns` (`name`, `tip`, and `number`: whether it is
      numeric) and `rows` (`key`, `cells` of text). `chosen` (keys of displayed rows), `filter` and `sort` (column,
      whether descending) are its current state. The key of its event "choices" is this state as JSON. Where it is
      `fixed`, rows cannot be chosen.
    - matrix: a confusion matrix of `classes` with `counts` [C][C]. Its cells are buttons with the event "cell" and a
      key such as "label,prediction".
    - legend: buttons with the event "legend": `items` with `key`, `name`, `colour`, and `tip`, an explanation.
    - ranking: a list of buttons with an `event`: `items` with `key`, `name`, `colour`, `number` as text, and `share`,
      the length of the bar.
    - picture: the bytes are a PNG, and `alt` describes it.

    Args:
        on_event: called with the name of an event and its key, two texts: after a click, with "ready" when a page
            displays the view, with "resize" when its width has changed (the key is the width of the maps, if it is
            known), and with "theme" when the page's theme changes. The attribute `dark` (whether the theme is dark) is
            updated before the call.
        waiting: text that is displayed until the first call of `show`.
        styled: whether the view brings the style sheet, which the other views of an explorer share.
    """

    # The text and not the path: anywidget watches paths, and its watcher would keep every view alive.
    _esm = "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)
    _css = (HERE / "view.css").read_text("utf-8")
    waiting = Unicode("").tag(sync=True)
    tips = Dict().tag(sync=True)  # explanations of the explorer's controls, by the text of their labels

    def __init__(
        self, on_event: Callable[[str, str], None] | None = None, *, waiting: str = "", styled: bool = True
    ) -> None:
        super().__init__(waiting=waiting, **{} if styled else {"_css": ""})
        self._on_event, self.dark = on_event, False
        self._last: tuple[list[Block], bytes] = [], b""
        self.on_msg(self._receive)

    def show(self, *blocks: Block, data: bytes = b"") -> None:
        """Replace the displayed blocks.

        Args:
            blocks: the new blocks.
            data: bytes of the images of tiles (see `strip`) or of a picture.
        """
        self._last = list(blocks), data
        self._send_last()

    def save(self, name: str, data: bytes, type: str = "application/octet-stream") -> None:
        """Send a file to the page as a download."""
        self.send({"save": name, "type": type}, [data])

    def _send_last(self) -> None:
        blocks, data = self._last
        self.send({"blocks": blocks}, [data])

    def _receive(self, _: Any, content: dict[str, Any], __: Any) -> None:
        event = content.get("event", "")
        if event in ("ready", "theme"):
            self.dark = bool(content["dark"])
        if event == "ready" and content["fresh"] and self._last[0]:
            self._send_last()
        if self._on_event:
            self._on_event(event, content.get("key", ""))


class Explorer(ipw.VBox):
    """Display controls above a view. An error in a callback is displayed between them until the next interaction.

    Without a live page (papermill, a file on GitHub, a page without a kernel), a picture is displayed instead.
    Subclasses define `figures`.
    """

    def __init__(self, controls: list[ipw.Widget], view: View) -> None:
        self.message, self.error = ipw.HTML(layout={"min_height": "26px"}), ""
        self.view = view
        # JupyterLab has callbacks executed in a thread of their own, but the first ones in the kernel's main thread.
        self._turn = threading.RLock()
        super().__init__([*controls, self.message, view])
        self.add_class("ickd-explorer")
        self._explain_controls()
        self.observe(self._explain_controls, "children")

    def _explain_controls(self, _: Any = None) -> None:
        """Send the tooltips to the page; ipywidgets itself ignores those of some kinds of controls."""
        left, found = list(self.children), {}
        while left:
            one = left.pop()
            left += getattr(one, "children", ())
            name = one.value if isinstance(one, ipw.Label) else getattr(one, "description", "")
            if name and getattr(one, "tooltip", None):
                found[name] = one.tooltip
        self.view.tips = found

    def close(self) -> None:
        """Remove the explorer from all pages, and release its widgets with the networks and images that they hold."""
        if self.comm is None:  # closed before
            return
        below: dict[str, ipw.Widget] = {self.model_id: self}
        left: list[ipw.Widget] = [self]
        while left:  # all widgets to which the state of one refers: children, layouts, styles
            widget = left.pop()
            for name in widget.keys:
                value = getattr(widget, name)
                for one in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(one, ipw.Widget) and one.model_id not in below:
                        below[one.model_id] = one
                        left.append(one)
        for widget in reversed(list(below.values())[1:]):
            widget.close()
        super().close()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # at the end of a program there is nothing left to close
            super().__del__()

    def figures(self) -> list[Figure]:
        """Return the current content as figures."""
        raise TypeError(f"{type(self).__name__} must define figures()")

    def png(self) -> bytes:
        """Return the current content as a PNG: the figures, one below the other, in the theme of the page."""
        return png_of(self.figures, self.view.dark)

    def show_message(self, text: str) -> None:
        """Display a message until the next interaction. A displayed error stays."""
        if not self.error:
            self._set_message("status", text)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Catch errors of the enclosed code and display them on the page, where they would otherwise not be visible.

        Only one thread at a time executes such code.
        """
        with self._turn, closing_figures():
            self.error = ""
            self._set_message("status", "")
            try:
                yield
            except Exception as error:
                self._show_error(error)

    def _show_error(self, error: Exception) -> None:
        self.error = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        self._set_message("alert", self.error)

    def _set_message(self, role: str, text: str) -> None:
        colour = "var(--jp-error-color1, #b00020); font-weight: 600" if role == "alert" else "var(--jp-ui-font-color2)"
        self.message.value = f'<div role="{role}" style="color: {colour}">{html.escape(text)}</div>' if text else ""

    def _ipython_display_(self) -> None:
        # Notebooks without a kernel and other viewers display the picture and a sentence; where the explorer is live,
        # view.css hides both.
        try:
            picture = {"image/png": base64.b64encode(self.png()).decode()}
            display(picture, metadata={"image/png": {"needs_background": "light"}}, raw=True)
            display({"text/html": STATIC}, raw=True)
        except Exception as error:
            if not self.error:  # an earlier error is the cause of this one
                self._show_error(error)
        display(self._repr_mimebundle_(), raw=True)


@contextlib.contextmanager
def closing_figures() -> Iterator[None]:
    """Close all figures that the enclosed code opens."""
    before = set(plt.get_fignums())
    try:
        yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def png_of(figures: Callable[[], list[Figure]], dark: bool) -> bytes:
    """Return what a function draws as one PNG, in a light or dark theme."""
    with closing_figures(), mpl.rc_context():
        plots.use(dark)
        drawn = stacked(figures())
        interactive = mpl.is_interactive()
    # The first figure of a notebook switches this on, and without it no figure of a later cell would be displayed.
    mpl.interactive(interactive)
    return drawn


def stacked(figures: list[Figure]) -> bytes:
    """Return figures as one PNG, one below the other."""
    drawn = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        drawn.append(Image.open(buffer).convert("RGB"))
    whole = Image.new("RGB", (max(one.width for one in drawn), sum(one.height for one in drawn)), "white")
    top = 0
    for one in drawn:
        whole.paste(one, (0, top))
        top += one.height
    buffer = io.BytesIO()
    whole.save(buffer, format="PNG")
    return buffer.getvalue()


def strip(images: Tensor, *, longest: int = TILE) -> tuple[bytes, tuple[int, int, int]]:
    """Convert images to the bytes and the shape of a block of tiles.

    Args:
        images: uint8, shape [N, 3, H, W]. They are scaled down where a side is longer than `longest`.
        longest: number of pixels.
    Returns:
        The bytes of the images in the order [N, h, w, 3], and (N, h, w).
    """
    height, width = images.shape[2:]
    if max(height, width) > longest:
        scale = longest / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = F.interpolate(images.float(), size, mode="area").round().to(images.dtype)
    n, _, height, width = images.shape
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes(), (n, height, width)
