"""Names with arguments, as in "ickd(nicd=0.5)"."""

from __future__ import annotations

import ast
from typing import Any

from ickd_lib.runtime.errors import InputError, shown


def parse_call(text: str, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """Split "ickd(nicd=0)" into ("ickd", {"nicd": 0}); the values are Python literals.

    Args:
        text: a name, possibly with keyword arguments in brackets.
        what, example: what the name is of, and an example, for the error message.
    Raises:
        InputError: the text has another form.
    """
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body  # a name such as torchvision/resnet18 is no Python name
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError(text)
        given = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(given) < len(call.keywords):
            raise ValueError(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # the last two: of nested brackets
        raise InputError(f"cannot read {what} {shown(text)}; write it like {example}") from None
    return name.strip(), given
