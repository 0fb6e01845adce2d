"""Base of every family's configuration: frozen plain values that go to JSON and back. Imports no torch."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

__all__ = ["Config", "fits"]


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value read from JSON is of a type: int, float, bool, str, None, a union, a Literal or a tuple of them.

    A bool is no number, an int is a float, NaN and infinity are none; a list is a tuple. Other types take anything.
    """
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        return len(kinds) == len(value) and all(fits(item, kind) for item, kind in zip(value, kinds, strict=True))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(fits(value, kind) for kind in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Plain values only: int, float, bool, str, None and tuples of them. A subclass checks them in `__post_init__`."""

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; tuples become lists."""
        return {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value for f in fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON values.

        Raises:
            ValueError: an unknown key (the known ones are listed), a value of another type, or one the family does not allow.
        """
        known = [f.name for f in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            raise ValueError(
                f"{cls.__name__}: unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Known: {', '.join(known)}."
            )
        hints = get_type_hints(cls)
        for key, value in values.items():
            if not fits(value, hints[key]):
                kind = hints[key].__name__ if hints[key] in (int, float, bool, str) else hints[key]
                raise ValueError(f"{cls.__name__}: {key}={value!r}. Needed: {kind}.")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def require(self, condition: bool, argument: str, allowed: str) -> None:
        """Raise one clear error where a value is not allowed."""
        if not condition:
            raise ValueError(f"{type(self).__name__}: {argument}={getattr(self, argument)!r}. Allowed: {allowed}.")
