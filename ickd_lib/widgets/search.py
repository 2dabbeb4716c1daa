"""The search field of the explorers."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
from traitlets import List, Unicode

from ickd_lib.explore import SampleSet
from ickd_lib.explore.selection import HELP, VERDICTS
from ickd_lib.widgets.view import HERE


class SearchBox(anywidget.AnyWidget):
    """A field for the search language of `explore.search`, with completion of words and one line of help.

    Args:
        samples: the samples that are searched; names of their classes and superclasses are offered.
        networks: names of the networks that a search may mention.
    """

    _esm = (HERE / "search.js").read_text("utf-8")
    value = Unicode("").tag(sync=True)
    placeholder = Unicode("").tag(sync=True)
    help = Unicode("").tag(sync=True)
    words = List(Unicode()).tag(sync=True)

    def __init__(self, samples: SampleSet, networks: Sequence[str]) -> None:
        names = dict.fromkeys([*samples.classes, *samples.superclasses])
        words = [f'"{name}"' if " " in name or name.lower() in VERDICTS else name for name in names]
        words += [*VERDICTS, "conf<0.5"]
        for at, name in enumerate(f'"{name}"' if " " in name else name for name in networks):
            words += [f"{name}:wrong", f"{name}:conf<0.5", *(f"{name}!={other}" for other in networks[:at])]
        example = f"{samples.classes[0]} wrong conf<0.5"
        super().__init__(placeholder=example, help=HELP, words=words)
