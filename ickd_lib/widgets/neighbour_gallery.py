"""The gallery of the neighbour explorer: a sample of queries, and what the explorer displays for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ickd_lib import runtime
from ickd_lib.widgets import gallery
from ickd_lib.widgets.neighbour_blocks import label_of
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import strip

if TYPE_CHECKING:
    from ickd_lib.widgets.neighbours import NeighbourExplorer, PathEntry

ABOUT = (
    "Each query is shown with its in-context samples: the most similar images of its class (positives) and of other "
    "classes (negatives) in the teacher's memory bank, and with what teacher, aggregate and student predict for it."
)


def save(explorer: NeighbourExplorer, path: str | Path, queries: int, shown: int) -> None:
    """Write the gallery of a neighbour explorer; `NeighbourExplorer.save` describes the arguments."""
    before, content = explorer.path, {}
    try:
        chosen = _drawn(explorer, queries)
        listed = list(chosen)
        for entry in listed:  # the list grows by the nearest samples of the first queries, so that clicks lead on
            explorer.path = [entry]
            content[entry] = explorer._content(shown, None)
            if entry in chosen:
                for found in (explorer.found.positives, explorer.found.negatives):
                    near = [("bank", int(at)) for at in explorer._positions(found)[:1]]
                    listed += [one for one in near if one not in listed]
    finally:
        explorer.path = before
        explorer._content(shown, None)
    sheets, keys = gallery.Sheets(), [_key(explorer, entry) for entry in listed]
    tiles = _tiles(explorer, listed)
    pages = {
        key: [gallery.opened_in(sheets.add(block, data), keys, "bank:") for block in shown_blocks]
        for key, (shown_blocks, data) in zip(keys, content.values(), strict=True)
    }
    listing = sheets.add(*tiles)
    title = f"In-context samples of {explorer.query_samples.name}"
    gallery.write(path, title, ABOUT, {"kind": "list", "listing": listing, "pages": pages, "of": "query"}, sheets)


def _drawn(explorer: NeighbourExplorer, count: int) -> list[PathEntry]:
    """Return the current query and randomly drawn ones, every second of which is an error of the student or teacher."""
    samples = explorer.query_samples
    order = torch.randperm(len(samples), generator=runtime.generator("gallery")).tolist()
    role = "student" if explorer.student is not None else "teacher"
    right = explorer._logits_of_all(role).argmax(1) == samples.labels
    groups = ([at for at in order if not right[at]], [at for at in order if right[at]])
    mixed = [at for pair in zip(*(group[:count] for group in groups), strict=False) for at in pair]
    entries = dict.fromkeys([explorer.current, *((explorer.source, at) for at in [*mixed, *order])])
    return [entry for entry in entries if entry[0] != "own"][:count]


def _key(explorer: NeighbourExplorer, entry: PathEntry) -> str:
    name, at = entry
    return f"{name}:{int(explorer.sets[name].keys[at])}"


def _tiles(explorer: NeighbourExplorer, entries: list[PathEntry]) -> tuple[dict[str, Any], bytes]:
    """Return a block with a tile for each query, and its images."""
    images = torch.cat([explorer.sets[name].thumbnails(torch.tensor([at])) for name, at in entries])
    data, shape = strip(images)
    tiles = []
    for i, (name, at) in enumerate(entries):
        samples = explorer.sets[name]
        label = label_of((samples, at))
        lines = [samples.classes[label] if label >= 0 else "label unknown", *samples.address(at)]
        tiles.append(
            {"at": i, "key": _key(explorer, (name, at)), "lines": lines, "label": f"query: {', '.join(lines)}"}
        )
    return {
        "kind": "tiles",
        "title": "queries",
        "tip": TERMS["queries"],
        "shape": shape,
        "tiles": tiles,
        "event": "open",
    }, data
