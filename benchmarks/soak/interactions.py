"""Interactions with the explorers, as by a page; memory and open files must not grow."""

from __future__ import annotations

import gc
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import torch

from ickd_lib import data, models
from ickd_lib.memory import MemoryBank
from ickd_lib.widgets import LogitSpaceExplorer, NeighbourExplorer, RunExplorer, SuspectExplorer, View

KEYS = [
    "0",
    "1",
    "2",
    "0,1",
    "3,3",
    "-1",
    "999999",
    "x",
    "",
    "±",
    '{"chosen": [], "filter": "x", "sort": [0, true]}',
    "{",
]
EVENTS = ["ready", "theme", "resize", "open", "crumb", "look", "page", "cell", "class", "choices", "unknown"]


def memory() -> int:
    """Return the bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def interact(number: int, seed: int, runs: Path) -> dict[str, Any]:
    """Interact `number` times with each kind of explorer in turn, which is closed and made anew after 50 times.

    Returns:
        Numbers of interactions and of displayed errors; errors that were raised; the growth of the memory, in bytes,
        and of the number of open files from the middle to the end.
    """
    plt.switch_backend("Agg")
    draw = random.Random(seed)
    splits = data.load("digits", labels=100)
    splits = splits._replace(test=splits.test.few(100))
    teacher = models.create("resnet8", **splits.train.spec).eval()
    bank = MemoryBank.build(teacher, splits.train, precision="fp32")
    logits = models.predict(teacher, splits.test, precision="fp32").logits
    makers = [
        lambda: LogitSpaceExplorer({"a": logits, "b": logits.flip(1)}, splits.test, how="pca"),
        lambda: NeighbourExplorer(bank, splits.train, student=teacher),
        lambda: SuspectExplorer(bank, splits.train),
        lambda: RunExplorer(runs),
    ]
    found: dict[str, Any] = {"interactions": 0, "displayed_errors": 0, "raised": []}
    first = LogitSpaceExplorer({"a": logits}, splits.test, how="umap")
    for view in (widget for widget in below(first) if isinstance(widget, View)):
        view._receive(None, {"event": "ready", "dark": False, "fresh": True}, [])  # UMAP compiles once
    first.close()
    marks = []
    while found["interactions"] < number:
        for make in makers:
            explorer = make()
            for _ in range(50):
                try:
                    act(explorer, draw)
                except Exception as error:
                    found["raised"].append(f"{type(explorer).__name__}: {type(error).__name__}: {error}")
                found["displayed_errors"] += bool(explorer.error)
                found["interactions"] += 1
            explorer.close()
            del explorer
        gc.collect()
        marks.append((memory(), len(os.listdir("/proc/self/fd"))))
    middle = marks[len(marks) // 2]
    return found | {"memory_growth": marks[-1][0] - middle[0], "files_growth": marks[-1][1] - middle[1]}


def below(widget: ipw.Widget) -> Iterator[ipw.Widget]:
    """Yield a widget and all widgets in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from below(child)


def act(explorer: Any, draw: random.Random) -> None:
    """Change one control at random, click a button, or send the event of a view."""
    widget = draw.choice([w for w in below(explorer) if not isinstance(w, (ipw.Box, ipw.HTML))])
    if isinstance(widget, View):
        event = {"event": draw.choice(EVENTS), "key": draw.choice(KEYS), "dark": draw.random() < 0.5, "fresh": True}
        widget._receive(None, event, [])
    elif isinstance(widget, ipw.Button):
        widget.click()
    elif isinstance(widget, ipw.SelectMultiple):
        widget.value = tuple(draw.sample(list(widget.options), min(2, len(widget.options))))
    elif hasattr(widget, "options"):
        widget.index = draw.randrange(len(widget.options)) if widget.options else None
    elif isinstance(widget, ipw.Checkbox):
        widget.value = not widget.value
    elif hasattr(widget, "max") and isinstance(widget.value, (int, float)):
        widget.value = type(widget.value)(draw.uniform(widget.min, widget.max))
    elif isinstance(widget, ipw.Text):
        widget.value = draw.choice(["", "3", "wrong", "0 1 2", "<b>", "±", "999999", "x" * 500, "-1", "1e999"])
    elif hasattr(widget, "selection"):
        widget.selection = draw.sample(range(100), draw.randrange(5))


def in_child(number: int, seed: int, runs: Path, path: Path) -> dict[str, Any]:
    """Call `interact` in a forked process, whose memory is its own, and return its result."""
    process = os.fork()
    if not process:
        torch.set_num_threads(1)
        try:
            path.write_text(json.dumps(interact(number, seed, runs)))
        except BaseException as error:
            path.write_text(json.dumps({"interactions": 0, "raised": [f"{type(error).__name__}: {error}"]}))
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    return json.loads(path.read_text())
