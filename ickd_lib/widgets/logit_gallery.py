"""The gallery of the logit-space explorer: linked maps of some images, their predictions, and a network's errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ickd_lib import runtime
from ickd_lib.explore.maps import MAPS
from ickd_lib.widgets import gallery
from ickd_lib.widgets.scatter import colouring, kinds, points_of
from ickd_lib.widgets.terms import TERMS
from ickd_lib.widgets.view import strip

if TYPE_CHECKING:
    from ickd_lib.widgets.logits import LogitSpaceExplorer


def save(explorer: LogitSpaceExplorer, path: str | Path, points: int) -> None:
    """Write the gallery of a logit-space explorer; `LogitSpaceExplorer.save` describes the arguments."""
    samples, count = explorer.samples, len(explorer.labels)
    drawn = torch.randperm(count, generator=runtime.generator("gallery"))
    wanted = torch.cat([explorer.members[:points], drawn]).tolist()  # what is selected is among the points
    at = torch.tensor(sorted(list(dict.fromkeys(wanted))[: min(points, count)]))
    sheets = gallery.Sheets()
    data, shape = strip(samples.thumbnails(at))
    tiles = []
    for i, position in enumerate(at.tolist()):
        file = samples.file(position)
        tiles.append({"at": i, "lines": [*samples.address(position), *([file.rpartition("/")[2]] if file else [])]})
    images = sheets.add({"kind": "tiles", "shape": shape, "tiles": tiles}, data)
    shown = list(dict.fromkeys([*(one.value for one in explorer.shows), *explorer.logits]))
    first = {"kind": "maps", "images": images, "classes": samples.classes, "labels": explorer.labels[at].tolist()}
    networks = {}
    for name in shown:
        probability, predicted = explorer.logits[name][at].softmax(1).max(1)
        networks[name] = {
            "points": points_of(explorer._map(name), torch.zeros(count))[at.numpy(), :2].round(3).tolist(),
            "predicted": predicted.tolist(),
            "confidence": [round(p, 3) for p in probability.tolist()],
        }
    first |= {"networks": networks, "shown": [one.value for one in explorer.shows]}
    content = first | {"colours": _colours(explorer, at, shown), "judged": explorer.judged.value}
    one, several = samples.task.sample
    about = (
        f"Each point is one of {len(at):,} {several}, and each map is the {MAPS[explorer.how.value][0]} of a network's "
        f"logits. Select points by their class, or {several} that one network gets right and another one wrong."
    )
    content |= {"selected": [i for i, position in enumerate(at.tolist()) if position in set(explorer.members.tolist())]}
    gallery.write(path, f"Logit space of {samples.name}", about, content | {"sample": one, "terms": TERMS}, sheets)


def _colours(explorer: LogitSpaceExplorer, at: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Return, for each way to colour the points, the legend and the entry of the legend of each point of each map."""
    samples, found, labels = explorer.samples, {}, explorer.labels[at]
    pair = (explorer.logits[explorer.pair[0]][at], explorer.logits[explorer.pair[1]][at])
    for by in explorer.colour.options:
        if by == "selected classes":  # a gallery fades what is not selected
            continue
        light, dark = (colouring(samples, by, (), theme, explorer.pair) for theme in (False, True))
        pairs = zip(light.entries, dark.entries, strict=True)
        entries = {one: (one[0], gallery.themed(one[1], other[1])) for one, other in pairs}
        of_kind = [list(entries).index(entry) for entry in light.by_kind]
        of = {name: [of_kind[k] for k in kinds(by, labels, explorer.logits[name][at], pair).tolist()] for name in names}
        found[by] = {"entries": list(entries.values()), "of": of}
    return found
