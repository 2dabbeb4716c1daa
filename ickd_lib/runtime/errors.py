"""Errors that a caller can act on, and the search for the nearest name."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

_noticed: set[str] = set()


class InputError(ValueError):
    """Raised where an argument, a file or a setting cannot work.

    The message is one line: what was given, what was expected, and what to do.
    """


class NotFinite(InputError):
    """Raised where a network's outputs contain NaN or infinity."""


class Diverged(ArithmeticError):
    """Raised where a loss, a weight or an output of a student became NaN or infinite. The message contains the step.

    Attributes:
        histories: the History of every student that finished, by name; empty if none did.
        step: the step of the epoch, from 0, in which the loss was not finite; None if it was not the loss.
    """

    def __init__(self, message: str, histories: dict[str, Any] | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.histories, self.step = histories or {}, step


def choose(name: str, options: Iterable[str], what: str, of: str = "") -> str:
    """Return the option that equals `name`, ignoring case.

    Args:
        name: what the caller gave.
        options: all valid names.
        what: the kind of thing that the names stand for, such as "method" or "data set", for the error message.
        of: what follows the name in the error message, such as " of method 'kd'".
    Raises:
        InputError: no option has this name; the message contains the most similar one.
    """
    known = list(options)
    folded = {option.lower(): option for option in known}
    if isinstance(name, str) and name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(str(name)[:100].lower(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    listed = ", ".join(known) if len(known) <= 40 else f"{len(known)} names, such as {', '.join(known[:5])}"
    raise InputError(f"unknown {what} {shown(name)}{of}{hint} (known: {listed or 'none'})")


def shown(value: Any) -> str:
    """Return a value in one short line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # the repr of an object from outside, or of an integer with too many digits, may raise
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def notice(text: str, *, once: str = "") -> None:
    """Print one line of information to `stream`, once. It is not a warning, because nothing is wrong.

    Of several processes that `torchrun` started, the first one prints.

    Args:
        text: the line.
        once: what is reported once, if lines differ, such as by the name of a file; by default the line.
    """
    if (once or text) not in _noticed and os.environ.get("RANK", "0") == "0":
        _noticed.add(once or text)
        print(f"note: {text}", file=stream())


def stream() -> TextIO:
    """Return where progress bars and notes are written: stderr, but stdout in a notebook, where stderr is red."""
    return sys.stdout if type(sys.stdout).__module__.startswith("ipykernel") else sys.stderr
