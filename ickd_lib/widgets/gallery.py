"""Galleries: explorers as one HTML file that needs neither a kernel nor a network connection."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ickd_lib import runtime
from ickd_lib.widgets.view import HERE, Block

LOSSLESS = 200_000  # largest size in bytes of a sheet without loss; larger ones are JPEG
CELL = 16  # the sides of images on a sheet are padded to multiples of this, the size of JPEG's blocks with colours
QUALITY = 88
FILES = ("blocks.js", "choices.js", "gallery.js")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; script-src {script_hash}; \
style-src {style_hash}">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="ickd">
<header><h1>{title}</h1><p>{about}</p></header>
<main id="gallery"><noscript>This page needs JavaScript.</noscript></main>
<script id="content" type="application/json">{content}</script>
<script type="module">{script}</script>
</body>
</html>
"""


class Sheets:
    """The images of a gallery, each stored once: one large picture for each size of image."""

    def __init__(self) -> None:
        self._of_size: dict[tuple[int, int], dict[bytes, int]] = {}  # position of each image among those of its size

    def add(self, block: Block, data: bytes) -> Block:
        """Return a block of a view whose tiles refer to these sheets instead of the bytes of a message.

        Args:
            block: a block, with blocks inside it or not.
            data: the bytes that were sent with it.
        """
        if "blocks" in block:
            return block | {"blocks": [self.add(one, data) for one in block["blocks"]]}
        if block["kind"] != "tiles":
            return block
        _, height, width = block["shape"]
        known = self._of_size.setdefault((height, width), {})
        size, tiles = height * width * 3, []
        for tile in block["tiles"]:
            start = block.get("start", 0) + tile["at"] * size
            tiles.append(tile | {"at": known.setdefault(data[start : start + size], len(known))})
        rest = {name: value for name, value in block.items() if name not in ("start", "shape")}
        return rest | {"tiles": tiles, "sheet": list(self._of_size).index((height, width))}

    def encoded(self) -> list[dict[str, Any]]:
        """Return each sheet as a data URI, with the `shape` (n, height, width) of its images and its `columns`."""
        sheets = []
        for (height, width), known in self._of_size.items():
            high, wide = (CELL * math.ceil(side / CELL) for side in (height, width))
            images = np.stack([np.frombuffer(one, np.uint8).reshape(height, width, 3) for one in known])
            padding = ((0, 0), (0, high - height), (0, wide - width), (0, 0))
            images = np.pad(images, padding, mode="edge")  # the same colours, so that JPEG does not smear
            columns = min(len(known), 1024 // wide or 1)
            rows = math.ceil(len(known) / columns)
            whole = np.zeros((rows * columns, high, wide, 3), np.uint8)
            whole[: len(known)] = images
            whole = whole.reshape(rows, columns, high, wide, 3).swapaxes(1, 2).reshape(rows * high, columns * wide, 3)
            source = data_uri(Image.fromarray(whole))
            sheets.append({"source": source, "shape": [len(known), height, width], "cell": [high, wide]})
        return sheets


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI: PNG, or JPEG where that would be large."""
    for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": QUALITY})):
        buffer = io.BytesIO()
        picture.save(buffer, format=form, **options)
        if buffer.tell() <= LOSSLESS:
            break
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def themed(light: str, dark: str) -> str:
    """Return a CSS colour that is `light` or `dark`, as the theme of a gallery is; browsers know it since 2024."""
    return light if light == dark else f"light-dark({light}, {dark})"


def write(path: str | Path, title: str, about: str, content: Mapping[str, Any], sheets: Sheets | None = None) -> None:
    """Write a gallery.

    Args:
        path: the file, which ends with .html.
        title: heading of the page.
        about: one or two sentences below the heading.
        content: what gallery.js displays; its `kind` is "list", "maps" or "runs".
        sheets: the images, if it has any on sheets.
    Raises:
        InputError: the path does not end with .html, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise runtime.InputError(f"a gallery is an HTML file, but {path} does not end with .html")
    if not path.parent.is_dir():
        raise runtime.InputError(f"the folder {path.parent} does not exist; create it first")
    style = "".join((HERE / name).read_text("utf-8") for name in ("view.css", "gallery.css"))
    script = "".join((HERE / name).read_text("utf-8") for name in FILES)
    # Nothing inside the JSON can close its element. The browser executes no script but the one with this hash.
    text = json.dumps({**content, "sheets": sheets.encoded() if sheets else []}, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    given = {"title": html.escape(title), "about": html.escape(about), "content": text}
    page = PAGE.format(style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), **given)
    with runtime.replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def opened_in(block: Block, keys: Sequence[str], prefix: str = "") -> Block:
    """Return a block in which only those tiles are buttons that open something in the gallery.

    Args:
        block: a block, with blocks inside it or not.
        keys: the keys of the gallery.
        prefix: text before the key of each tile.
    """
    if "blocks" in block:
        return block | {"blocks": [opened_in(one, keys, prefix) for one in block["blocks"]]}
    if block["kind"] != "tiles" or "event" not in block:
        return block
    tiles = [tile | {"key": f"{prefix}{tile['key']}"} for tile in block["tiles"]]
    return block | {"tiles": [tile | ({} if tile["key"] in keys else {"plain": True}) for tile in tiles]}
