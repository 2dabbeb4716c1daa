"""Which registered methods a test over the registry trains on images of one class, and why it leaves the others out."""

from __future__ import annotations

from ickd_lib import methods, tasks

# The methods that classification cannot train, with what they lack; test_methods.py checks that these are all.
LEFT_OUT = {"cirkd": "pixels", "cwd": "pixels"}


def trained() -> list[str]:
    """Return the names of the registered methods that classification can train."""
    return [name for name in methods.names() if not lacking(name)]


def lacking(name: str) -> str:
    """Return the needs of a method that classification does not provide, as text."""
    return ", ".join(sorted(methods.create(name).needs & tasks.create("classification").unsupported))
