"""Names with arguments, as in "ickd(nicd=0.5)"."""

from __future__ import annotations

import ast
from typing import Any

from ickd_lib.runtime.errors import InputError


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
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(text)
        return name.strip(), {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise InputError(f"cannot read {what} {text!r}; write it like {example}") from None
