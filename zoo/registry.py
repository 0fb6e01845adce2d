"""What is in the zoo: entries as plain data, and the functions that list, filter and look them up. Imports no torch."""

import difflib
import fnmatch
import inspect
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from typing import Any, Literal

__all__ = ["Entry", "UnknownNameError", "Weights", "catalog_families", "find", "info", "list_models", "register"]

Modality = Literal["image", "video", "audio"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")


class UnknownNameError(KeyError, ValueError):
    """No entry has this name. The text is shown plainly, not as a quoted key."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where an entry's weights are.

    Attributes:
        repo: Hub repository `org/name`; None for weights that ship inside the package.
        file: the tensor file, inside the repository or relative to `zoo/weights/`.
        revision: full commit id where known; a branch or tag otherwise.
        sha256: of the tensor file; None where it is not known.
        size: of the tensor file in bytes; None where it is not known.
        layout: "zoo" for our own config.json and parameter names, "public" for the original release's.
        config_file: the configuration beside the tensors; None where the entry's own config is used.
        pickle: True where the public file is a pickle; it is then read with `weights_only=True`.
        key: entry of that pickle which holds the tensors, with `.` between levels; None for its `state_dict`, or the whole. Several
            are joined by `+`, and their tensors have the entry and a `.` before their names.
    """

    file: str = "model.safetensors"
    repo: str | None = None
    revision: str = "main"
    sha256: str | None = None
    size: int | None = None
    layout: Literal["zoo", "public"] = "zoo"
    config_file: str | None = "config.json"
    pickle: bool = False
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tokenizer: what it is, what its tokens are, where its weights come from and what may be done with them.

    A field that does not apply is None, and so is one that nobody has stated (a licence is never guessed).

    Attributes:
        name: lower snake case, `family_size_detail_data`.
        family: the file `zoo/<modality>/<family>.py`.
        summary: one sentence for people.
        config: keyword arguments of the family's config dataclass.
        weights: where the weights are; None for an architecture without published weights.
        layout: "1d" sequence, "2d" grid, "3d" grid of video.
        discrete: integer codes (True) or floating-point latents (False).
        ordered: a prefix of the positions is a valid, shorter description (`tokens=k`, `Tokens.keep`).
        residual: a prefix of the depth axis is a valid, coarser description (`depth=d`, `Tokens.depth`).
        tokens: positions for one item at the native size (images), None where they grow with the length.
        depth: codes per position.
        codebook_size: entries of one codebook; the largest where they differ. None for latents.
        vocabulary: codebook size for each depth.
        channels: channels of continuous latents.
        native_size: `(h, w)` the weights were trained at.
        downsample: `(t, h, w)`, input size over token grid; None for 1D image tokens.
        size_multiple: sides are padded to a multiple of it.
        max_size: the largest side accepted; None where there is no limit.
        bits_per_pixel: at the full rate and the native size.
        bits_per_second: at the full rate (audio; video at 25 frames a second).
        sample_rate: samples per second of the audio.
        frame_rate: token positions per second.
        audio_channels: channels of the audio.
        causal: an output never depends on later input.
        streaming: `stream()` works.
        lookahead_frames: later frames an output may depend on.
        stochastic_encode: the encoder can sample (`sample=True`).
        stochastic_decode: the decoder takes a seed.
        trained_on: data set in words.
        training_pack: name of one of our data packs, whose sources and licences the card lists.
        training: steps, batch, seed, time and hardware of our own training, in words.
        license_code: SPDX id of the code the weights were made with.
        license_weights: SPDX id of the weights (`LicenseRef-...` for a licence of their own).
        notice: shown once when the weights are loaded.
        paper: title and identifier.
        source: repository of the original release, `owner/name`, and the commit checked against.
        parameters: numbers in the weight file (parameters and stored tables), asserted on the meta device.
        recipe: the recipe of `recipes/configs/` that rebuilds the weights.
        tags: free words for `find(tags="...")`, such as the axes of the audio codec survey.
    """

    name: str
    family: str
    modality: Modality
    summary: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: Weights | None = None
    layout: Literal["1d", "2d", "3d"]
    discrete: bool
    ordered: bool = False
    residual: bool = False
    tokens: int | None = None
    depth: int = 1
    codebook_size: int | None = None
    vocabulary: tuple[int, ...] = ()
    channels: int | None = None
    native_size: tuple[int, int] | None = None
    downsample: tuple[int, int, int] | None = None
    size_multiple: int | None = None
    max_size: int | None = None
    bits_per_pixel: float | None = None
    bits_per_second: float | None = None
    sample_rate: int | None = None
    frame_rate: float | None = None
    audio_channels: int | None = None
    causal: bool = False
    streaming: bool = False
    lookahead_frames: int | None = None
    stochastic_encode: bool = False
    stochastic_decode: bool = False
    trained_on: str | None = None
    training_pack: str | None = None
    training: str | None = None
    license_code: str | None = None
    license_weights: str | None = None
    notice: str | None = None
    paper: str | None = None
    source: str | None = None
    parameters: int | None = None
    recipe: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name):
            raise ValueError(f"Entry: name={self.name!r} is not lower snake case. Use letters, digits and single underscores.")
        if self.modality not in MODALITIES:
            raise ValueError(f"Entry {self.name}: modality={self.modality!r}. Allowed: {', '.join(MODALITIES)}.")
        object.__setattr__(self, "config", dict(self.config))

    @property
    def embedded(self) -> bool:
        """Weights ship inside the package, so loading needs no network."""
        return self.weights is not None and self.weights.repo is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the fields that are None or empty."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or value == () or (f.name == "config" and not value):
                continue
            if f.name == "weights":
                value = {w.name: getattr(value, w.name) for w in fields(value)}
            out[f.name] = dict(value) if isinstance(value, Mapping) else value
        return out


_EXTRA: dict[str, Entry] = {}
_ORIGIN: dict[str, str] = {}


@cache
def _shipped() -> dict[str, Entry]:
    """Read the catalog files once; a name used twice is refused with both places."""
    entries: dict[str, Entry] = {}
    for modality in MODALITIES:
        module = import_module(f"zoo.catalog.{modality}")
        for entry in module.ENTRIES:
            if entry.name in entries:
                raise ValueError(f"{module.__name__}: entry {entry.name!r} is already in {_ORIGIN[entry.name]}. Rename one.")
            entries[entry.name] = entry
            _ORIGIN[entry.name] = module.__name__
    return entries


def _entries() -> dict[str, Entry]:
    return {**_shipped(), **_EXTRA}


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort `b2` before `b10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def register(entry: Entry) -> Entry:
    """Add an entry of your own at run time, so that `load`, `find` and `list_models` know it.

    Raises:
        TypeError: not an Entry.
        ValueError: the name is taken; both sources are named.
    """
    if not isinstance(entry, Entry):
        raise TypeError(f"zoo.register: got a {type(entry).__name__}. Needed: a zoo.Entry.")
    caller = inspect.stack()[1]
    origin = f"{caller.filename}:{caller.lineno}"
    if entry.name in _entries():
        raise ValueError(
            f"zoo.register: name={entry.name!r} is already registered by {_ORIGIN.get(entry.name, 'another caller')}; "
            f"this call is at {origin}. Choose another name."
        )
    _EXTRA[entry.name] = entry
    _ORIGIN[entry.name] = origin
    return entry


def list_models(pattern: str = "*", *, exclude: str | None = None, **filters: Any) -> list[str]:
    """List names in natural order.

    Args:
        pattern: shell wildcards, such as `"flextok*"`.
        exclude: wildcards of names to leave out.
        filters: as for `find`.
    """
    names = [entry.name for entry in find(**filters)]
    names = fnmatch.filter(names, pattern)
    return [name for name in names if exclude is None or not fnmatch.fnmatch(name, exclude)]


_COMPARE = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "ne": operator.ne,
    "in": lambda value, allowed: value in allowed,
    "contains": lambda value, part: part in value,
}


def _field_names() -> list[str]:
    return [f.name for f in fields(Entry)] + ["embedded"]


def _parse_filter(key: str) -> tuple[str, str]:
    """Split `max_bits_per_pixel` or `bits_per_pixel__lt` into a field and a comparison."""
    known = _field_names()
    if key in known:
        return key, "contains" if key == "tags" else "eq"
    name, _, suffix = key.rpartition("__")
    if name in known and suffix in _COMPARE:
        return name, suffix
    for prefix, comparison in (("max_", "le"), ("min_", "ge")):
        if key.startswith(prefix) and key.removeprefix(prefix) in known:
            return key.removeprefix(prefix), comparison
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    raise ValueError(
        f"zoo.find: no field {key!r}." + (f" Did you mean {', '.join(near)}?" if near else "")
        + f" Fields: {', '.join(known)}; with max_ or min_ before, or __lt, __le, __gt, __ge, __ne, __in, __contains after."
    )


def _meets(value: Any, comparison: str, wanted: Any, key: str) -> bool:
    if comparison == "eq":
        return bool(value == wanted)
    if value is None and comparison not in ("ne", "in"):
        return False
    try:
        return bool(_COMPARE[comparison](value, wanted))
    except TypeError as error:
        raise ValueError(f"zoo.find: {key}={wanted!r} cannot be compared with values such as {value!r} ({error}).") from error


def find(**filters: Any) -> list[Entry]:
    """Give the entries that meet every condition, in natural order of their names.

    `find(modality="image", causal=True, max_bits_per_pixel=0.1)` compares by equality, by `max_`/`min_` before a field's
    name, or by `__lt __le __gt __ge __ne __in __contains` after it. `tags="word"` asks for one tag. An entry whose field is
    None never meets a comparison of size.

    Raises:
        ValueError: no such field (with near matches), or a value that the field cannot be compared with.
    """
    parsed = [(key, *_parse_filter(key), wanted) for key, wanted in filters.items()]

    def meets(entry: Entry) -> bool:
        return all(_meets(getattr(entry, name), comparison, wanted, key) for key, name, comparison, wanted in parsed)

    return sorted((entry for entry in _entries().values() if meets(entry)), key=lambda entry: _natural(entry.name))


def info(name: str) -> Entry:
    """Give the entry of a name.

    Raises:
        UnknownNameError: with the three closest names (a KeyError and a ValueError).
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(str(name), entries, n=3, cutoff=0.0)
    raise UnknownNameError(f"zoo has no tokenizer {name!r}. Closest: {', '.join(near)}. `zoo list` shows all {len(entries)}.")


def catalog_families() -> dict[str, Modality]:
    """The table of families: name -> modality. A configuration file can choose one of these and nothing else."""
    return {entry.family: entry.modality for entry in _entries().values()}


