"""Which generators there are: entries as plain data, and the functions that list and look them up. Imports no torch.

Families of generators have a table of their own: `cvivit`, `elm` and `tokenbridge` name a tokenizer in `zoo.load` and a
generator here.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from typing import Any

from zoo.registry import UnknownNameError, Weights

__all__ = ["FAMILIES", "GeneratorEntry", "find", "info", "list_models"]

FAMILIES: tuple[str, ...] = ("autoregressive", "cvivit", "elm", "flexar", "flowar", "resgen", "token_shuffle", "tokenbridge", "xar")


@dataclass(frozen=True, kw_only=True)
class GeneratorEntry:
    """One generator: what it predicts, for which tokenizer, where its weights come from. What nobody has stated is None.

    Attributes:
        name: lower snake case, `family_size_detail_data`.
        family: the file `zoo/generators/<family>.py`; `maskgit_video.py` for "cvivit".
        summary: one sentence for people.
        config: keyword arguments of the family's config dataclass; `tokenizer` in it names the tokenizer.
        weights: where the weights are; None for an architecture without published weights.
        unit: what one step predicts: "token", "window", "cell", "scale", "depth stack".
        objective: "cross-entropy", "masked", "flow matching", "discrete diffusion".
        context: what training shows as context: "clean" or "noisy".
        trained_on: data set in words.
        license_code: SPDX id of the code the weights were made with.
        license_weights: SPDX id of the weights.
        notice: shown once when the weights are loaded.
        paper: title and identifier.
        source: repository of the original release and the commit checked against.
        parameters: learned numbers, asserted on the meta device.
        tags: free words.
    """

    name: str
    family: str
    summary: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: Weights | None = None
    unit: str | None = None
    objective: str | None = None
    context: str | None = None
    trained_on: str | None = None
    license_code: str | None = None
    license_weights: str | None = None
    notice: str | None = None
    paper: str | None = None
    source: str | None = None
    parameters: int | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name):
            raise ValueError(f"GeneratorEntry: name={self.name!r} is not lower snake case, such as xar_b_in1k.")
        if self.family not in FAMILIES:
            raise ValueError(f"GeneratorEntry {self.name}: family={self.family!r}. Known: {', '.join(FAMILIES)}.")
        object.__setattr__(self, "config", dict(self.config))

    @property
    def tokenizer(self) -> str | None:
        """Name of the tokenizer whose tokens it makes, where the entry says so."""
        return self.config.get("tokenizer")


@cache
def _shipped() -> dict[str, GeneratorEntry]:
    """Read the catalog once; a name used twice is refused."""
    entries: dict[str, GeneratorEntry] = {}
    for entry in import_module("zoo.catalog.generators").ENTRIES:
        if entry.name in entries:
            raise ValueError(f"zoo.catalog.generators: the name {entry.name!r} is used twice. Rename one.")
        entries[entry.name] = entry
    return entries


def find(**filters: Any) -> list[GeneratorEntry]:
    """Give the entries whose fields equal the values given, by name: `find(family="xar", tokenizer="tokenbridge_kl16")`.

    Raises:
        ValueError: no such field; the known ones are listed.
    """
    known = [f.name for f in fields(GeneratorEntry)] + ["tokenizer"]
    for key in filters:
        if key not in known:
            raise ValueError(f"zoo.generators.find: no field {key!r}. Fields: {', '.join(known)}.")
    entries = _shipped()
    return [
        entries[name]
        for name in sorted(entries)
        if all(getattr(entries[name], key) == value for key, value in filters.items())
    ]


def list_models(pattern: str = "*", **filters: Any) -> list[str]:
    """List names that match shell wildcards and meet the conditions of `find`."""
    return fnmatch.filter([entry.name for entry in find(**filters)], pattern)


def info(name: str) -> GeneratorEntry:
    """Give the entry of a name.

    Raises:
        UnknownNameError: with the three closest names (a KeyError and a ValueError).
    """
    entries = _shipped()
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(str(name), entries, n=3, cutoff=0.0)
    raise UnknownNameError(f"zoo.generators has no generator {name!r}. Closest: {', '.join(near)}.")
