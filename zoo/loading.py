"""From a name, a folder or a Hub repository to a tokenizer that works: `load` and `create`."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch.overrides import TorchFunctionMode

from zoo.checkpoint import load_strict, read_folder, read_tensors
from zoo.config import fits
from zoo.registry import Entry, catalog_families, find, info
from zoo.tokenizer import Tokenizer

__all__ = ["SkipInit", "create", "embedded_folder", "family_class", "load", "stored_shapes"]

logger = logging.getLogger(__name__)
_NOTICED: set[str] = set()


def embedded_folder() -> Path:
    """Folder of the weights that ship inside the package."""
    return Path(__file__).parent / "weights"


def family_class(family: str) -> type[Tokenizer]:
    """Import a family by its name. Only families of the catalog, and of entries you registered yourself, can be named.

    Raises:
        ValueError: no such family; the known ones are listed.
    """
    table = catalog_families()
    if not isinstance(family, str) or family not in table:
        raise ValueError(f"zoo.load: family={family!r} is unknown. Known: {', '.join(sorted(table))}.")
    if family not in Tokenizer.families:
        module = f"zoo.{table[family]}.{family}"
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ValueError(f"zoo.load: the family {family!r} is not defined. Import the module of its class first.") from error
    return Tokenizer.families[family]


def create(name: str, *, info_name: str | None = None, **overrides: Any) -> Tokenizer:
    """Build a tokenizer with fresh random weights, to train it or to look at its shape.

    Args:
        name: catalog name, or a family for its default configuration.
        info_name: name of the new tokenizer; the family's name where the configuration was changed.
        overrides: fields of the family's configuration.

    Raises:
        ValueError: unknown name or field.
    """
    if name in catalog_families() and name not in {entry.name for entry in find()}:
        cls, values, entry = family_class(name), {}, None
    else:
        entry = info(name)
        cls, values = family_class(entry.family), dict(entry.config)
    config = cls.Config.from_dict({**values, **overrides})
    if entry is not None and not overrides and info_name is None:
        return cls(config, entry)
    return cls(config, _entry_of(cls, config, info_name or cls.family))


def load(
    source: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tokenizer:
    """Load a tokenizer with its weights, ready for use (evaluation mode, no gradients).

    Args:
        source: a catalog name, a local folder, or a Hub repository `org/name`. A catalog name wins over a folder of that name
            in the current directory; write `./name` for the folder.
        family: for a folder or repository in the public release's own format, the family that reads it.
        revision: commit, branch or tag of a Hub repository; the entry's own where it is None. A folder has none.
        device: where the weights go.
        dtype: floating-point type of the weights.

    Raises:
        UnknownNameError: no such name (with near matches); it is a ValueError and a KeyError.
        TypeError: a source that is neither text nor a path.
        ValueError: a checkpoint that is corrupt, foreign or does not fit, a config with unknown keys, an unknown family, or an
            argument that contradicts the source.
        HubError: the repository could not be read.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"zoo.load: source is a {type(source).__name__}. Needed: a catalog name, a folder or a repository.")
    text = str(source)
    named = isinstance(source, str) and text in {entry.name for entry in find()}
    if not named and (isinstance(source, Path) or Path(text).is_dir() or text.startswith((".", "/", "~"))):
        if revision is not None:
            raise ValueError(f"zoo.load: revision={revision!r}, but {text} is a folder, which has one content. Leave it out.")
        tokenizer = _load_folder(Path(source).expanduser(), family=family, name=None)
    elif "/" in text:
        tokenizer = _load_repo(text, family=family, revision=revision)
    else:
        entry = info(text)
        if family not in (None, entry.family):
            raise ValueError(f"zoo.load: {text} is of the family {entry.family!r}, but family={family!r} was asked for.")
        tokenizer = _load_entry(entry, revision=revision)
    _notify(tokenizer.info)
    return tokenizer.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _notify(entry: Entry) -> None:
    """Show the notice of weights once in a process."""
    if entry.notice and entry.name not in _NOTICED:
        _NOTICED.add(entry.name)
        logger.warning("%s: %s", entry.name, entry.notice)


def _load_entry(entry: Entry, *, revision: str | None) -> Tokenizer:
    weights = entry.weights
    if weights is None:
        raise ValueError(
            f"zoo.load: {entry.name} has no published weights. `zoo.create({entry.name!r})` builds it with random ones, "
            "and its recipe trains it."
        )
    cls = family_class(entry.family)
    if weights.repo is None:
        path = embedded_folder() / weights.file
        return _fill(cls, cls.Config.from_dict(entry.config), entry, path, layout="zoo", sha256=weights.sha256)
    from zoo.hub import fetch

    at = revision or weights.revision
    config = cls.Config.from_dict(entry.config)
    if weights.config_file is not None:
        file = fetch(weights.repo, weights.config_file, revision=at)
        path = fetch(weights.repo, weights.file, revision=at, sha256=weights.sha256, size=weights.size)
        found = _read_config(cls, _json(file), path, weights.layout)
        if found != config:
            _report_difference(entry, config, found)
            config, entry = found, replace(entry, config=found.to_dict(), **cls.layout_of(found))
    else:
        path = fetch(weights.repo, weights.file, revision=at, sha256=weights.sha256, size=weights.size)
    return _fill(cls, config, entry, path, layout=weights.layout, pickle=weights.pickle, key=weights.key)


def _load_repo(repo: str, *, family: str | None, revision: str | None) -> Tokenizer:
    from zoo.hub import check_repo_id, fetch_folder

    check_repo_id(repo)
    folder = fetch_folder(repo, revision=revision or "main")
    return _load_folder(folder, family=family, name=repo.rpartition("/")[2])


def _load_folder(path: Path, *, family: str | None, name: str | None) -> Tokenizer:
    if not path.is_dir():
        raise ValueError(f"zoo.load: no folder {path}. Give a folder with config.json and model.safetensors, or a catalog name.")
    folder = read_folder(path)
    ours = "family" in folder.config and "config" in folder.config
    if not ours and family is None:
        raise ValueError(
            f"zoo.load: config.json in {path} is not in our own format. Say which family reads it: "
            f"family= one of {', '.join(sorted(catalog_families()))}."
        )
    if ours and family not in (None, folder.config["family"]):
        raise ValueError(f"zoo.load: {path} holds a {folder.config['family']!r}, but family={family!r} was asked for.")
    cls = family_class(folder.config["family"] if ours else family)  # type: ignore[arg-type]
    layout = "zoo" if ours else "public"
    config = _read_config(cls, folder.config, folder.tensors_path, layout)
    entry = _entry_of(cls, config, _identifier(folder.config.get("name", name or path.resolve().name)))
    if ours:
        entry = replace(entry, **_provenance(folder.config.get("entry", {}), path))
    return _fill(cls, config, entry, folder.tensors_path, layout=layout, sha256=folder.sha256)


class SkipInit(TorchFunctionMode):
    """Draw no random weights for new parameters (a billion numbers take a minute); constants are computed as always.

    Elementary draws give zeros instead, since initialisers that reject values outside their range draw until all are inside.
    """

    _INITIALISERS = frozenset(["kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"])
    _DRAWS = frozenset(["uniform_", "normal_"])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._INITIALISERS:
            return args[0] if args else (kwargs or {})["tensor"]
        if name in self._DRAWS:
            with torch.no_grad():
                return (args[0] if args else (kwargs or {})["tensor"]).zero_()
        return func(*args, **(kwargs or {}))


_PROVENANCE = (
    *("summary", "trained_on", "training_pack", "training", "license_code", "license_weights", "notice", "paper", "source"),
    *("parameters", "recipe"),
)


def _provenance(values: Any, path: Path) -> dict[str, Any]:
    """Fields of our own config.json that tell where weights come from; the rest follows from the configuration."""
    if not isinstance(values, Mapping):
        raise ValueError(f"zoo.load: 'entry' in config.json of {path} is a {type(values).__name__}. Needed: an object.")
    known = {f.name for f in fields(Entry)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(f"zoo.load: config.json of {path} has unknown keys under 'entry': {', '.join(unknown)}.")
    hints = get_type_hints(Entry)
    for key in _PROVENANCE:
        if key in values and not fits(values[key], hints[key]):
            raise ValueError(f"zoo.load: 'entry' in config.json of {path} holds {key}={values[key]!r}. Needed: {hints[key]}.")
    return {key: values[key] for key in _PROVENANCE if key in values}


def _identifier(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")
    return name if name[:1].isalpha() else f"tokenizer_{name}".rstrip("_")


def _entry_of(cls: type[Tokenizer], config: Any, name: str) -> Entry:
    return Entry(name=name, family=cls.family, summary="", config=config.to_dict(), **cls.layout_of(config))


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"zoo.load: {path} is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"zoo.load: {path} holds a {type(values).__name__}. Needed: a JSON object.")
    return values


def _read_config(cls: type[Tokenizer], values: dict[str, Any], tensors_path: Path, layout: str) -> Any:
    if layout == "zoo":
        if not isinstance(values.get("config"), dict):
            raise ValueError(f"zoo.load: config.json beside {tensors_path.name} has no object 'config'. Is it a {cls.family}?")
        return cls.Config.from_dict(values["config"])
    return cls.from_public(values, stored_shapes(tensors_path))


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; empty for a pickle."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"zoo.load: {path} is not a readable safetensors file ({error}).") from error


def _report_difference(entry: Entry, expected: Any, found: Any) -> None:
    a, b = expected.to_dict(), found.to_dict()
    different = [f"{key}: {b[key]} (catalog: {a[key]})" for key in a if a[key] != b[key]]
    if different:
        logger.warning("%s: the repository's configuration differs from the catalog and wins: %s", entry.name, "; ".join(different))


def _fill(
    cls: type[Tokenizer],
    config: Any,
    entry: Entry,
    path: Path,
    *,
    layout: str,
    sha256: str | None = None,
    pickle: bool = False,
    key: str | None = None,
) -> Tokenizer:
    """Build without drawing random weights, then put the checked tensors in: nothing is half loaded."""
    tensors = read_tensors(path, sha256=sha256, allow_pickle=pickle, key=key)
    if layout == "public":
        tensors = cls.rename_public(tensors, config)
    with SkipInit():
        tokenizer = cls(config, entry)
    load_strict(tokenizer, tensors, name=entry.name)
    return tokenizer


