"""Base of every family's configuration: frozen plain values that go to JSON and back. Imports no torch."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

__all__ = ["Config"]


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
            ValueError: an unknown key (the known ones are listed) or a value the family does not allow.
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
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def require(self, condition: bool, argument: str, allowed: str) -> None:
        """Raise one clear error where a value is not allowed."""
        if not condition:
            raise ValueError(f"{type(self).__name__}: {argument}={getattr(self, argument)!r}. Allowed: {allowed}.")
