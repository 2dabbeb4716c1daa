"""What all explorers stand on: a view that shows blocks, and a box that says what went wrong."""

from __future__ import annotations

import base64
import contextlib
import html
import io
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
from traitlets import Unicode

from ickd_lib import plots
from ickd_lib.runtime import InputError

HERE = Path(__file__).parent
TILE = 64  # pixels of a side that travel to the page, at most
Block = dict[str, Any]


class View(anywidget.AnyWidget):
    """A part of a page that shows blocks and tells of clicks. It keeps no state that a notebook would save.

    A block is a dictionary with a "kind":

    - row: `blocks` beside each other.
    - text: `text`, of `tone` "note" or "error" (which screen readers announce).
    - crumbs: a path of `items`, each with `text` and `key`; all but the last are buttons. Event "crumb".
    - tiles: images out of the bytes that come with the message, N images of `shape` (N, height, width) in RGB; each of
      `tiles` has `at` (its position among the N), `key`, `lines` of text (the first after a swatch of `colour`) and
      `label`. `tone` is "query", "same", "other" or "plain". With an `event` they are buttons.
    - bars: for each of `rows` (`name`, `colour`, `marked`, `values`) a bar and a number a column.
    - table: `columns` and `rows` of texts.
    - choices: a table of `columns` (`name`, `number`) and `rows` (`key`, `cells` of text) to filter, sort and choose
      from; `chosen` (keys), `filter` and `sort` (column, whether descending) say how it stands. Event "choices", whose
      key is these three as JSON.
    - picture: the bytes are a PNG; `alt` describes it.

    Args:
        told: called with the event and its key, a text, when something is clicked; with "ready" when a page shows the
            view, and with "theme" when its theme changes. `dark` is up to date then.
        waiting: shown until there is something to show.
    """

    _esm = HERE / "view.js"
    _css = HERE / "view.css"
    waiting = Unicode("").tag(sync=True)

    def __init__(self, told: Callable[[str, str], None] | None = None, *, waiting: str = "") -> None:
        super().__init__(waiting=waiting)
        self._told, self.dark = told, False
        self._last: tuple[list[Block], bytes] = [], b""
        self.on_msg(self._heard)

    def show(self, *blocks: Block, data: bytes = b"") -> None:
        """Replace what is shown; `data` holds the images of tiles or a picture."""
        self._last = list(blocks), data
        self._repeat()

    def save(self, name: str, data: bytes, type: str = "application/octet-stream") -> None:
        """Offer a file to the person at the page, as a download."""
        self.send({"save": name, "type": type}, [data])

    def _repeat(self) -> None:
        blocks, data = self._last
        self.send({"blocks": blocks}, [data])

    def _heard(self, _: Any, content: dict[str, Any], __: Any) -> None:
        event = content.get("event", "")
        if event in ("ready", "theme"):
            self.dark = bool(content["dark"])
        if event == "ready" and content["fresh"] and self._last[0]:
            self._repeat()
        if self._told:
            self._told(event, content.get("key", ""))


class Explorer(ipw.VBox):
    """Controls above a view. What goes wrong in a callback is shown between them, and goes away with the next touch.

    Where no page shows it (papermill, a file on GitHub, a page without a kernel), its picture stands in.
    A subclass writes `figures`.
    """

    def __init__(self, controls: list[ipw.Widget], view: View) -> None:
        self.message, self.error = ipw.HTML(layout={"min_height": "26px"}), ""
        self.view = view
        super().__init__([*controls, self.message, view])

    def close(self) -> None:
        """Take it from all pages, and let go of all below it and of the networks, banks and images that they hold."""
        below: list[ipw.Widget] = [self]
        for widget in below:
            below += getattr(widget, "children", ())
        for widget in reversed(below[1:]):
            widget.close()
        super().close()

    def figures(self) -> list[Figure]:
        """What is shown now, as figures."""
        raise TypeError(f"{type(self).__name__} must define figures()")

    def png(self) -> bytes:
        """What is shown now, as a picture: its figures, one below the other."""
        with closing_figures(), mpl.rc_context():
            plots.use()
            return stacked(self.figures())

    def say(self, text: str) -> None:
        """Show a remark, until the next touch; never in the place of an error."""
        if not self.error:
            self._tell("status", text)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, an error is shown to the person at the page, who has no other way to see it, and goes no further."""
        self.error = ""
        self._tell("status", "")
        with closing_figures():
            try:
                yield
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        self._tell("alert", self.error)

    def _tell(self, role: str, text: str) -> None:
        colour = "var(--jp-error-color1, #b00020); font-weight: 600" if role == "alert" else "var(--jp-ui-font-color2)"
        self.message.value = f'<div role="{role}" style="color: {colour}">{html.escape(text)}</div>' if text else ""

    def _ipython_display_(self) -> None:
        # Two outputs: a notebook that is opened without its kernel shows the picture, as viewers elsewhere do. Before a
        # live explorer view.css hides it.
        try:
            picture = {"image/png": base64.b64encode(self.png()).decode()}
            display(picture, metadata={"image/png": {"needs_background": "light"}}, raw=True)
        except Exception as error:
            if not self.error:  # one from before is the cause of this one
                self._fail(error)
        display(self._repr_mimebundle_(), raw=True)


@contextlib.contextmanager
def closing_figures() -> Iterator[None]:
    """Close, at the end, the figures that were opened inside."""
    before = set(plt.get_fignums())
    try:
        yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def stacked(figures: list[Figure]) -> bytes:
    """Figures as one PNG, one below the other."""
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


def strip(images: Tensor) -> tuple[bytes, tuple[int, int, int]]:
    """Images [N, 3, H, W] uint8 as the bytes and the shape that tiles are cut from, no side longer than TILE."""
    height, width = images.shape[2:]
    if max(height, width) > TILE:
        scale = TILE / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = F.interpolate(images.float(), size, mode="area").round().to(images.dtype)
    n, _, height, width = images.shape
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes(), (n, height, width)
