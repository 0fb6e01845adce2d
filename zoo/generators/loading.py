"""From a name, a folder or a Hub repository to a generator that works: `load`, `create`, `save`.

The same rules as for tokenizers (`zoo.loading`): everything fits or nothing is loaded, a class is chosen from our own table, and a
pickle is read only where a catalog entry says that the public file is one.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import torch

from zoo.checkpoint import Folder, load_strict, read_folder, read_tensors, write_folder
from zoo.config import fits
from zoo.generators.base import Generator, binding
from zoo.generators.registry import FAMILIES, GeneratorEntry, find, info
from zoo.hub import choose_weights
from zoo.loading import SkipInit, embedded_folder, stored_shapes
from zoo.registry import find as tokenizers
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["FORMAT", "create", "create_for", "entry_config", "family_class", "load", "save"]

logger = logging.getLogger(__name__)
_NOTICED: set[str] = set()
FORMAT = "zoo-generator-1"
"""Said in config.json of a folder that holds a generator."""

_FILES = {"cvivit": "maskgit_video"}  # where the file is named after the system, not after its tokenizer
_PROVENANCE = (
    *("summary", "unit", "objective", "context", "trained_on", "license_code", "license_weights", "notice", "paper", "source"),
    "parameters",
)


def family_class(family: str) -> type[Generator]:
    """Import a family by its name, `zoo/generators/<family>.py` unless `_FILES` says otherwise.

    Raises:
        ValueError: no such family; the known ones are listed.
    """
    if family not in FAMILIES:
        raise ValueError(f"zoo.generators.load: family={family!r} is unknown. Known: {', '.join(FAMILIES)}.")
    import_module(f"zoo.generators.{_FILES.get(family, family)}")
    return Generator.families[family]


def create(name: str, *, tokens: Tokens | None = None, **overrides: Any) -> Generator:
    """Build a generator with fresh random weights, to train it or to look at its shape.

    Args:
        name: catalog name, or a family for its default configuration.
        tokens: tokens of the tokenizer it is for, one item or more: vocabulary, positions and extent are read off them.
        overrides: fields of the family's configuration.

    Raises:
        ValueError: unknown name or field, or a configuration that is not allowed.
    """
    entry = None if name in FAMILIES else info(name)
    cls = family_class(name if entry is None else entry.family)
    values = {**({} if entry is None else entry_config(entry)), **({} if tokens is None else binding(tokens)), **overrides}
    try:
        config = cls.Config.from_dict(values)
    except TypeError as error:  # a dataclass field without a value
        raise ValueError(f"zoo.generators.create: {name}: {error}. Give tokens=, or the fields that are missing.") from error
    return cls(config, entry if tokens is None and not overrides else None)


def create_for(name: str, tokenizer: Tokenizer, *, depth: int | None = None, **overrides: Any) -> Generator:
    """Build a generator with fresh random weights for the tokens that this tokenizer makes at its native size.

    Positions, vocabulary and extent are read off its tokens; what else the family needs (values of rounded latents, codebooks) is
    taken from it too.

    Args:
        name: catalog name, or a family.
        tokenizer: of pictures.
        depth: so many levels of a residual tokenizer; None takes all.
        overrides: fields of the family's configuration.

    Raises:
        ValueError: a tokenizer without a native size, or one whose tokens the family cannot make, and as `create`.
    """
    if tokenizer.info.native_size is None:
        raise ValueError(
            f"zoo.generators.create_for: {tokenizer.info.name} has no native size. Use create(name, tokens=...) with tokens of the "
            "size you want."
        )
    x = torch.zeros(1, tokenizer.in_channels, *tokenizer.info.native_size, device=tokenizer.device, dtype=tokenizer.dtype)
    with torch.no_grad():
        tokens = tokenizer.encode(x, depth=depth)
    entry = None if name in FAMILIES else info(name)
    cls = family_class(name if entry is None else entry.family)
    generator = create(name, tokens=tokens, **{**cls.settings_for(tokenizer), **overrides})
    if entry is not None:
        generator.info = replace(entry, config=generator.config.to_dict(), weights=None, parameters=None)
    generator.take_from(tokenizer)
    return generator


def entry_config(entry: GeneratorEntry) -> dict[str, Any]:
    """The configuration of an entry; layout of the tokens as the tokenizer's own entry says, where this one does not say it.

    So an entry for a tokenizer of this zoo follows it when that one is given more tokens.
    """
    known = {other.name: other for other in tokenizers()}
    tokenizer = known.get(entry.tokenizer or "")
    layout: dict[str, Any] = {}
    if tokenizer is not None and tokenizer.tokens is not None and tokenizer.native_size is not None:
        layout = {key: getattr(tokenizer, key) for key in ("modality", "vocabulary", "channels", "ordered", "residual")}
        layout["extent"] = tokenizer.native_size
        if tokenizer.layout == "1d":
            layout["positions"] = (tokenizer.tokens,)
        elif tokenizer.downsample is not None:
            sides = zip(tokenizer.native_size, tokenizer.downsample[1:], strict=True)
            layout["positions"] = tuple(-(-side // factor) for side, factor in sides)
    return {**layout, **entry.config}


def load(
    source: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Generator:
    """Load a generator with its weights, ready for use (evaluation mode, no gradients).

    Args:
        source: a catalog name, a local folder, or a Hub repository `org/name`; a catalog name wins over a folder of that name.
        family: for a folder or repository in the public release's own format, the family that reads it.
        revision: commit, branch or tag of a Hub repository. A folder has none.
        device: where the weights go.
        dtype: floating-point type of the weights.

    Raises:
        UnknownNameError: no such name (a ValueError and a KeyError).
        TypeError: a source that is neither text nor a path.
        ValueError: a checkpoint that is corrupt, foreign or does not fit, an unknown family, or contradicting arguments.
        HubError: the repository could not be read.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"zoo.generators.load: source is a {type(source).__name__}. Needed: a name, a folder or a repository.")
    text = str(source)
    named = isinstance(source, str) and text in {entry.name for entry in find()}
    if not named and (isinstance(source, Path) or Path(text).is_dir() or text.startswith((".", "/", "~"))):
        if revision is not None:
            raise ValueError(f"zoo.generators.load: revision={revision!r}, but {text} is a folder. Leave it out.")
        generator = _load_folder(Path(source).expanduser(), family, Path(source).expanduser().resolve().name)
    elif "/" in text:
        from zoo.hub import check_repo_id, fetch, fetch_folder

        check_repo_id(text)
        name, at = family_class(family).config_file if family is not None else "config.json", revision or "main"
        if name == "config.json":
            folder = fetch_folder(text, revision=at)
        else:
            folder = fetch(text, name, revision=at).parent
            fetch_folder(text, revision=folder.name, config=False)
        generator = _load_folder(folder, family, text.rpartition("/")[2])
    else:
        entry = info(text)
        if family not in (None, entry.family):
            raise ValueError(f"zoo.generators.load: {text} is of the family {entry.family!r}, but family={family!r} was asked for.")
        generator = _load_entry(entry, revision)
    if generator.info.notice and generator.info.name not in _NOTICED:
        _NOTICED.add(generator.info.name)
        logger.warning("%s: %s", generator.info.name, generator.info.notice)
    return generator.to(device=device, dtype=dtype).eval().requires_grad_(False)


def save(
    generator: Generator, folder: str | Path, *, overwrite: bool = False, tensors: Mapping[str, torch.Tensor] | None = None
) -> Path:
    """Write a folder that `load` reads: config.json and model.safetensors.

    Args:
        generator: whose configuration and, without `tensors`, whose weights are written.
        folder: to be made.
        overwrite: replace a folder that is there.
        tensors: weights to write instead, complete and under the same names, such as those of a sharded model put together.

    Raises:
        FileExistsError: the folder exists and `overwrite` is False.
    """
    entry = {key: getattr(generator.info, key) for key in _PROVENANCE if getattr(generator.info, key) is not None}
    config = {
        "format": FORMAT,
        "name": generator.info.name,
        "family": generator.family,
        "config": generator.config.to_dict(),
        "entry": entry,
    }
    return write_folder(folder, config=config, tensors=tensors or generator.state_dict(), overwrite=overwrite)


def _load_entry(entry: GeneratorEntry, revision: str | None) -> Generator:
    weights = entry.weights
    if weights is None:
        raise ValueError(
            f"zoo.generators.load: {entry.name} has no published weights. `zoo.generators.create({entry.name!r})` builds it with "
            "random ones."
        )
    cls = family_class(entry.family)
    config, at = cls.Config.from_dict(entry_config(entry)), revision or weights.revision
    if weights.repo is None:
        path = embedded_folder() / weights.file
    else:
        from zoo.hub import fetch

        path = fetch(weights.repo, weights.file, revision=at, sha256=weights.sha256, size=weights.size)
    if weights.repo is not None and weights.config_file is not None:
        file = fetch(weights.repo, weights.config_file, revision=at)
        found = _public_config(cls, _yaml(file), path)
        if found != config:
            _report_difference(entry, config, found)
            config, entry = found, replace(entry, config=found.to_dict(), parameters=None)
    tensors = read_tensors(path, sha256=weights.sha256, allow_pickle=weights.pickle, key=weights.key)
    return _fill(cls, config, entry, tensors, public=weights.layout == "public")


def _load_folder(path: Path, family: str | None, name: str) -> Generator:
    if not path.is_dir():
        raise ValueError(f"zoo.generators.load: no folder {path}. Give a folder with config.json and weights, or a catalog name.")
    folder = _read_folder(path, family)
    values = folder.config
    ours = values.get("format") == FORMAT
    if not ours and family is None:
        raise ValueError(
            f"zoo.generators.load: config.json in {path} is not in our own format. Say which family reads it: family= one of "
            f"{', '.join(FAMILIES)}."
        )
    if ours and family not in (None, values.get("family")):
        raise ValueError(f"zoo.generators.load: {path} holds a {values.get('family')!r}, but family={family!r} was asked for.")
    cls = family_class(values.get("family", "") if ours else family)  # type: ignore[arg-type]
    if ours and not isinstance(values.get("config"), dict):
        raise ValueError(f"zoo.generators.load: config.json of {path} has no object 'config'.")
    config = cls.Config.from_dict(values["config"]) if ours else _public_config(cls, values, folder.tensors_path)
    origin = _provenance(values.get("entry", {}), path) if ours else cls.facts
    identifier = re.sub(r"[^a-z0-9]+", "_", str(values.get("name", name) if ours else name).lower()).strip("_")
    identifier = identifier if identifier[:1].isalpha() else f"{cls.family}_{identifier}".rstrip("_")
    entry = GeneratorEntry(**{"summary": "", **origin}, name=identifier, family=cls.family, config=config.to_dict())
    return _fill(cls, config, entry, read_tensors(folder.tensors_path, sha256=folder.sha256), public=not ours)


def _read_folder(path: Path, family: str | None) -> Folder:
    """Read our own folder or a public one, whose configuration may have another name than config.json."""
    name = "config.json" if family is None else family_class(family).config_file
    if name == "config.json" or (path / "config.json").is_file():
        return read_folder(path)
    if not (path / name).is_file():
        raise ValueError(f"zoo.generators.load: neither {name} nor config.json in {path}. Give a folder with one, and weights.")
    weights = choose_weights([file.name for file in path.iterdir()], where=f"folder {path}")
    return Folder(config=_yaml(path / name), tensors_path=path / weights, metadata={})


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"zoo.generators.load: {path} is not YAML: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"zoo.generators.load: {path} holds a {type(values).__name__}. Needed: a mapping.")
    return values


def _public_config(cls: type[Generator], values: dict[str, Any], tensors: Path) -> Any:
    try:
        return cls.from_public(values, stored_shapes(tensors))
    except (KeyError, TypeError) as error:
        where = f"{cls.config_file} beside {tensors}"
        raise ValueError(f"zoo.generators.load: {where} is not of the family {cls.family} ({error}).") from error


def _report_difference(entry: GeneratorEntry, expected: Any, found: Any) -> None:
    a, b = expected.to_dict(), found.to_dict()
    different = [f"{key}: {b[key]} (catalog: {a[key]})" for key in a if a[key] != b[key]]
    logger.warning("%s: the repository's configuration differs from the catalog and wins: %s", entry.name, "; ".join(different))


def _provenance(values: Any, path: Path) -> dict[str, Any]:
    """Fields of our own config.json that tell where weights come from."""
    known, hints = {f.name for f in fields(GeneratorEntry)}, get_type_hints(GeneratorEntry)
    if not isinstance(values, Mapping) or [key for key in values if key not in known]:
        raise ValueError(f"zoo.generators.load: 'entry' in config.json of {path} is not an object of known keys: {values!r}.")
    for key in _PROVENANCE:
        if key in values and not fits(values[key], hints[key]):
            found = f"{key}={values[key]!r}"
            raise ValueError(f"zoo.generators.load: 'entry' in config.json of {path} holds {found}. Needed: {hints[key]}.")
    return {key: values[key] for key in _PROVENANCE if key in values}


def _fill(
    cls: type[Generator], config: Any, entry: GeneratorEntry, tensors: dict[str, torch.Tensor], *, public: bool
) -> Generator:
    """Build without drawing random weights, then put the checked tensors in: nothing is half loaded."""
    if public:
        tensors = cls.rename_public(tensors, config)
    with SkipInit():
        generator = cls(config, entry)
    load_strict(generator, tensors, name=entry.name)
    return generator
