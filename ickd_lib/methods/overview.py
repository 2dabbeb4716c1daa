"""Overviews of methods for a notebook: what each one does, and where its targets come from."""

from __future__ import annotations

from collections.abc import Mapping

from ickd_lib.methods.base import Method
from ickd_lib.methods.combined import Combined


def method_table(methods: Mapping[str, Method]) -> str:
    """Format methods as a Markdown table: the first line of each docstring, `needs` and `label_space`.

    A method that retrieves in-context samples has "retrieval" among its needs. The label space is left empty for a
    method that does not need a teacher.

    Args:
        methods: the methods by name.
    """
    lines = ["| method | what it does | needs | teacher's classes |", "|---|---|---|---|"]
    for name, method in methods.items():
        parts = method.parts if isinstance(method, Combined) else [method]
        summaries = [(type(part).__doc__ or "").strip().partition("\n")[0].rstrip(".:") for part in parts]
        space = method.label_space if method.needs_teacher else ""
        needs = method.needs | ({"retrieval"} if method.retrievals else set())
        lines.append(f"| `{name}` | {'; '.join(summaries)} | {', '.join(sorted(needs))} | {space} |")
    return "\n".join(lines)


def by_teacher(methods: Mapping[str, Method]) -> dict[str, list[str]]:
    """Group methods by what provides their targets.

    Args:
        methods: the methods by name.
    Returns:
        The names in the given order, under "no teacher", "peers" and "pretrained teacher". A group without a method is
        left out.
    """
    groups: dict[str, list[str]] = {"no teacher": [], "peers": [], "pretrained teacher": []}
    for name, method in methods.items():
        kind = "peers" if "peers" in method.needs else "pretrained teacher" if method.needs_teacher else "no teacher"
        groups[kind].append(name)
    return {kind: names for kind, names in groups.items() if names}
