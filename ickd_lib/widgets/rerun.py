"""What an explorer keeps when the cell that creates it is run again: the values of its controls."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import ipywidgets as ipw
from IPython.core.getipython import get_ipython
from traitlets import TraitError

from ickd_lib import runtime
from ickd_lib.explore import SampleSet

_latest: weakref.WeakValueDictionary[tuple[str, ...], Any] = weakref.WeakValueDictionary()


def executing_cell() -> str:
    """Return the identifier of the notebook cell that is being executed; "" where there is none."""
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        return str(get_ipython().get_parent()["metadata"]["cellId"])  # type: ignore[no-untyped-call, union-attr]
    return ""


def resume(explorer: Any, controls: Sequence[str], of: Sequence[SampleSet | str]) -> Any:
    """Give the controls the values that they had in the explorer that the same cell created before.

    A control whose first value is another one than before keeps it, because the code of the cell was changed.

    Args:
        explorer: an explorer, whose controls nobody observes yet.
        controls: names of its attributes that are controls.
        of: the samples and the names of the networks that it displays; only an explorer of the same is resumed.
    Returns:
        The earlier explorer; None if there is none.
    """
    explorer.first = {name: getattr(explorer, name).value for name in controls}
    if not (cell := executing_cell()):
        return None
    shown = [[one.name, one.keys] if isinstance(one, SampleSet) else [one] for one in of]
    key = (type(explorer).__name__, runtime.fingerprint(*itertools.chain(*shown)), cell)
    earlier, _latest[key] = _latest.get(key), explorer
    for name, first in explorer.first.items():
        if earlier is not None and earlier.first.get(name) == first:
            control: ipw.Widget = getattr(explorer, name)
            with contextlib.suppress(TraitError):  # the earlier value is not among the options any more
                control.value = getattr(earlier, name).value
    return earlier
