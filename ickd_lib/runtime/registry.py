"""Classes that are registered by name: methods, tasks, data sets and networks."""

from __future__ import annotations

from typing import Any

from ickd_lib.runtime.errors import InputError

MODULES: set[str] = set()  # modules outside the library that have registered a class


def enter(registry: dict[str, Any], name: str, cls: Any, what: str) -> None:
    """Add a class, or a function, to a registry. Defining the same class again, as a notebook does, replaces it.

    Args:
        registry: the registered classes by name.
        name: the name of the class.
        cls: the class or function.
        what: what the registry contains, for the error message ("method").
    Raises:
        InputError: another class has the name.
    """
    taken = registry.get(name)
    if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        place = f"{taken.__module__}.{taken.__qualname__}"
        raise InputError(f"{what} {name!r} is already registered: {place}; choose another name")
    registry[name] = cls
    if cls.__module__.partition(".")[0] not in ("ickd_lib", "__main__"):
        MODULES.add(cls.__module__)
