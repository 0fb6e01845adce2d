"""Reading and writing a folder of weights: `config.json`, one safetensors file, a card.

Everything is checked before anything is changed: a file is read completely or not at all, a module receives all its tensors
or none, a folder appears complete or does not appear.
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.hub import choose_weights, sha256_of
from zoo.pickles import read_pickle
from zoo.torchscript import read_script

__all__ = [
    "Folder",
    "load_strict",
    "read_folder",
    "read_tensors",
    "sha256_of",
    "tensors_sha256",
    "weight_norm_keys",
    "write_folder",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PICKLES = (".pt", ".pth", ".th", ".bin", ".ckpt")
SHOWN = 10  # keys of each kind that an error lists

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- tensors of one file


def read_tensors(
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    allow_pickle: bool = False,
    key: str | None = None,
) -> dict[str, Tensor]:
    """Read all tensors of a file onto the CPU.

    Args:
        path: a safetensors file; a TorchScript archive (`.jit`), whose code is not run; a pickle (`.pt`, `.pth`, `.th`, `.bin`,
            `.ckpt`) only with `allow_pickle`.
        sha256: what the file must hash to; checked before it is read.
        allow_pickle: the caller knows that the public release is a pickle. Nothing that it names is run:
            objects of training frameworks beside the tensors are left out, all others refuse the file (`zoo.pickles`).
        key: entry of a pickled dictionary that holds the tensors, with `.` between levels. None takes the dictionary itself,
            or its `state_dict`. Several entries joined by `+` are read together, their names with the entry and a `.` before.

    Returns:
        name -> tensor, with the names and types of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, cut off, damaged, of another kind or hashes to something else; the message names
            the file and the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"zoo.read_tensors: no file {path}.")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"zoo.read_tensors: {path} is damaged or not the file that was meant: its sha256 is {found}, {sha256} was "
            "expected. Get the file again."
        )
    if path.suffix in PICKLES:
        if not allow_pickle:
            raise ValueError(
                f"zoo.read_tensors: {path} is a pickle ({path.suffix}), and a pickle can run code when it is read. Needed: a "
                "*.safetensors file. Pickles are read only for catalog entries that say so."
            )
        return _read_pickle(path, key)
    return read_script(path) if path.suffix == ".jit" else _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"zoo.read_tensors: {path} is not a readable safetensors file: {_what_is_it(path)} ({error}).") from error


def _what_is_it(path: Path) -> str:
    """Name the fault of a file that is not safetensors, by its first bytes and its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if size == 0:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the content; run `git lfs pull`"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"\x80"):
        return "it is a pickle or an archive"
    if head.lstrip()[:1] == b"<":
        return "it is a web page"
    if size < 8:
        return f"it has only {size} bytes"
    header = int.from_bytes(head[:8], "little")
    if header + 8 > size:
        return f"it is cut off or foreign: {size} bytes where its header alone asks for {header + 8}"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        with path.open("rb") as file:
            file.seek(8)
            layout = json.loads(file.read(header))
        needed = 8 + header + max(entry["data_offsets"][1] for name, entry in layout.items() if name != "__metadata__")
        if needed != size:
            return f"it {'is cut off' if needed > size else 'has bytes too many'}: {size} bytes where {needed} are announced"
    return "its header is damaged"


def _read_pickle(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        content = read_pickle(path)
    except pickle.UnpicklingError as error:
        fault = str(error).split("\n", 1)[0]
        raise ValueError(
            f"zoo.read_tensors: {path} is not a pickle of plain tensors, or it is damaged; nothing of it was used ({fault})."
        ) from error
    except Exception as error:  # bytes that are no pickle can raise any class inside the unpickler
        fault = "it is empty" if path.stat().st_size == 0 else f"{type(error).__name__}: {error}"
        raise ValueError(f"zoo.read_tensors: {path} cannot be read as a pickle: {fault}.") from error
    if key is not None and "+" in key:
        entries = {entry: _entry(path, content, entry, key) for entry in key.split("+")}
        return {f"{entry}.{name}": value for entry, values in entries.items() for name, value in values.items()}
    if key is not None:
        return _entry(path, content, key, key)
    where = "the file"
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content, where = content["state_dict"], "'state_dict'"
    return _plain(path, content, where)


def _entry(path: Path, content: object, entry: str, key: str) -> dict[str, Tensor]:
    """Follow the `.` of one entry."""
    where = "the file"
    for part in entry.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise ValueError(f"zoo.read_tensors: key={key!r}: {where} of {path} has no {part!r}. {_describe(content)}")
        content, where = content[part], repr(part)
    return _plain(path, content, where)


def _plain(path: Path, content: object, where: str) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"zoo.read_tensors: {where} of {path} is not a dictionary of tensors. {_describe(content)} Say with key= which "
            "entry holds them."
        )
    return {str(name): value.detach() for name, value in content.items()}


def _describe(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"It is a {type(content).__name__}."
    other = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    tensors = len(content) - len(other)
    return f"It has {tensors} tensors and {len(other)} other entries: {', '.join(other[:SHOWN]) or '-'}."


# ---------------------------------------------------------------- tensors into a module


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Put tensors into a module, all of them or none.

    Floating-point types are cast to the module's; integer and boolean values are never made from floating-point ones.
    A module on the meta device receives the tensors themselves. Parameters the module shares between two places must be
    equal in the file and stay shared.

    Args:
        module: changed only when everything fits.
        tensors: name -> tensor, names as in `module.state_dict()`.
        name: of the tokenizer, for the error.

    Raises:
        ValueError: one message with every kind of misfit (missing, unexpected, other shape, other type, shared but unequal,
            too large for the type), the first ten of each and their count.
    """
    wanted = module.state_dict(keep_vars=True)
    groups = _shared(wanted)
    faults = {
        "missing": [key for key in wanted if key not in tensors],
        "unexpected": [key for key in tensors if key not in wanted],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} (needed {tuple(value.shape)})"
            for key, value in wanted.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
        "of another type": [
            f"{key} {_short(tensors[key].dtype)} (needed {_short(value.dtype)})"
            for key, value in wanted.items()
            if key in tensors and not _castable(tensors[key].dtype, value.dtype)
        ],
        "shared in the module but different in the file": [
            " = ".join(group)
            for group in groups
            if all(key in tensors for key in group) and not all(_same(tensors[group[0]], tensors[key]) for key in group[1:])
        ],
    }
    _refuse(name, faults)
    on_meta = any(value.is_meta for value in wanted.values())
    unfilled = [key for key, buffer in module.named_buffers() if buffer.is_meta and key not in wanted]
    _refuse(name, {"on the meta device and not stored (build them on a real device)": unfilled})
    cast = {key: _cast(tensors[key], value) for key, value in wanted.items()}
    _refuse(name, {"too large for the module's type": [key for key in cast if _overflows(tensors[key], cast[key])]})
    if on_meta:
        for group in groups:  # one parameter object for all places keeps them shared
            shared = wanted[group[0]]
            first = cast[group[0]]
            if isinstance(shared, nn.Parameter):
                first = nn.Parameter(first, requires_grad=shared.requires_grad)
            cast.update(dict.fromkeys(group, first))
    module.load_state_dict(cast, strict=True, assign=on_meta)


def _shared(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names that stand for one tensor."""
    groups: dict[int, list[str]] = {}
    for key, value in state.items():
        groups.setdefault(id(value), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def _refuse(name: str, faults: Mapping[str, list[str]]) -> None:
    """Raise one error that lists every kind of fault that was found."""
    lines = [
        f"  {len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for kind, keys in faults.items()
        if keys
    ]
    if lines:
        raise ValueError(
            f"{name}: the weights do not fit the model, which was left as it was.\n"
            + "\n".join(lines)
            + "\nLoad weights of the same family and configuration."
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rank(dtype: torch.dtype) -> int:
    """0 boolean, 1 integer, 2 floating point, 3 complex: a cast may go up, never down."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1


def _castable(source: torch.dtype, target: torch.dtype) -> bool:
    return _rank(source) <= _rank(target)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    device = tensor.device if like.is_meta else like.device
    return tensor.detach().to(device=device, dtype=like.dtype)


def _overflows(before: Tensor, after: Tensor) -> bool:
    """Whether a value that was finite is lost in a narrower type (float32 -> float16, int64 -> int32)."""
    if before.dtype == after.dtype or before.numel() == 0:
        return False
    if _rank(after.dtype) == 2 and _rank(before.dtype) == 2:
        if torch.finfo(after.dtype).max >= torch.finfo(before.dtype).max:
            return False
        return bool((before.isfinite().to(after.device) & ~after.isfinite()).any())
    if _rank(after.dtype) == 1:
        return not torch.equal(after.to(before.device, torch.int64), before.to(torch.int64))
    return False


def weight_norm_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the older spelling of weight normalisation to the one current modules have.

    `layer.weight_g` and `layer.weight_v` become `layer.parametrizations.weight.original0` and `...original1`; a file in the
    current spelling, and every other name, passes unchanged. A lone `weight_g` or `weight_v` is not renamed, so that the
    strict load reports it.

    Raises:
        ValueError: one layer is there in both spellings.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"((?:.*\.)?)weight_([gv])", name)
        if match is not None and f"{match[1]}weight_{'v' if match[2] == 'g' else 'g'}" in tensors:
            name = f"{match[1]}parametrizations.weight.original{'gv'.index(match[2])}"
            if name in tensors:
                raise ValueError(f"zoo.weight_norm_keys: {name!r} is there in both spellings of weight normalisation. Keep one.")
        renamed[name] = tensor
    return renamed


# ---------------------------------------------------------------- a folder


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What `read_folder` found.

    Args:
        config: content of config.json.
        tensors_path: the weight file.
        metadata: text fields stored in the header of the weight file.
        sha256: what the weight file must hash to, where config.json says so.
    """

    config: dict[str, Any]
    tensors_path: Path
    metadata: dict[str, str]
    sha256: str | None = None


def read_folder(folder: str | os.PathLike[str], *, verify: bool = False) -> Folder:
    """Read config.json and find the weight file of a folder; tensors are not loaded.

    The weight file is the one config.json records under "weights" (folders made by `write_folder`), else
    `model.safetensors`, else `weights.safetensors`, else the only `*.safetensors`.

    Args:
        folder: a local folder.
        verify: read the weight file and compare its hash with the recorded one. Without it only the recorded size is
            compared; `read_tensors(folder.tensors_path, sha256=folder.sha256)` does the rest.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no config.json, not a JSON object, no or several weight files, a file that is not safetensors, or one
            that differs from its record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"zoo.read_folder: no folder {folder}.")
    config = _read_config(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    record = _record(config, folder)
    weights = record["file"] if record else choose_weights(names, where=f"folder {folder}")
    path = folder / weights
    if record and weights not in names:
        raise ValueError(
            f"zoo.read_folder: config.json of {folder} names {weights!r}, which is not there. There: {', '.join(names[:20])}."
        )
    if record and path.stat().st_size != record["size"]:
        raise ValueError(f"zoo.read_folder: {path} has {path.stat().st_size} bytes, config.json records {record['size']}.")
    if record and verify and (found := sha256_of(path)) != record["sha256"]:
        raise ValueError(f"zoo.read_folder: {path} is damaged: its sha256 is {found}, config.json records {record['sha256']}.")
    return Folder(config=config, tensors_path=path, metadata=_read_metadata(path), sha256=record["sha256"] if record else None)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        raise ValueError(f"zoo.read_folder: no config.json in {folder}. There: {', '.join(names[:20]) or 'nothing'}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"zoo.read_folder: {path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"zoo.read_folder: {path} holds a JSON {type(config).__name__}. Needed: an object {{...}}.")
    return config


def _record(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Our record of the weight file; None where a public config.json has none or uses the word for something else."""
    record = config.get("weights")
    if not isinstance(record, dict) or set(record) != {"file", "sha256", "size"}:
        return None
    file = record["file"]
    if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file or "\\" in file or file.startswith("."):
        raise ValueError(f"zoo.read_folder: config.json of {folder} names the weight file {file!r}. Allowed: NAME.safetensors.")
    return record


def _read_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"zoo.read_folder: {path} is not a readable safetensors file: {_what_is_it(path)} ({error}).") from error


def write_folder(
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    readme: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write config.json, model.safetensors and README.md; the folder appears complete or not at all.

    config.json receives `"weights": {"file", "sha256", "size"}`, in place of such a record of an earlier folder. The same
    arguments give the same bytes.

    Args:
        folder: must not exist yet, except with `overwrite`.
        config: a JSON object: text keys, no NaN or infinity.
        tensors: name -> tensor on any device; stored with the types they have.
        readme: text of the card, or None.
        overwrite: replace a folder that holds nothing but what this function writes.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and `overwrite` is False.
        ValueError: config is not JSON, there are no tensors, or the folder to replace holds other files.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    _check_replaceable(folder, overwrite)
    _check_json(config)
    if not tensors:
        raise ValueError("zoo.write_folder: tensors is empty. Give `module.state_dict()`.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(folder) as new:
        # A copy of its own for every name: the format cannot express tensors that share memory.
        save_file(
            {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()},
            new / WEIGHTS,
            metadata={"format": "pt"},
        )
        record = {"file": WEIGHTS, "sha256": sha256_of(new / WEIGHTS), "size": (new / WEIGHTS).stat().st_size}
        text = json.dumps({**config, "weights": record}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (new / CONFIG).write_text(text, encoding="utf-8")
        if readme is not None:
            (new / CARD).write_text(readme, encoding="utf-8")
        _check_replaceable(folder, overwrite)
        _move(new, folder)
    return folder


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise FileExistsError(f"zoo.write_folder: {folder} exists. Choose another folder or pass overwrite=True.")
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"zoo.write_folder: {folder} is not a folder, so overwrite=True does not replace it.")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in (CONFIG, WEIGHTS, CARD))
    if foreign:
        raise ValueError(
            f"zoo.write_folder: overwrite=True would delete {len(foreign)} other files of {folder}: "
            f"{', '.join(foreign[:SHOWN])}. Choose another folder or move them away."
        )


def _check_json(config: Mapping[str, Any]) -> None:
    def check(value: object, where: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"zoo.write_folder: {where} has the key {key!r}. JSON keys are text.")
                check(item, f"{where}[{key!r}]")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                check(item, f"{where}[{index}]")
        elif isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
            pass
        elif value is not None and not isinstance(value, str | bool | int):
            raise ValueError(
                f"zoo.write_folder: {where} is {value!r} ({type(value).__name__}). Allowed: text, numbers that are finite, "
                "true/false, null, lists and objects of them."
            )

    check(config, "config")


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk, removed if it was not moved away."""
    new = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.new"
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move(new: Path, folder: Path) -> None:
    """Put a finished folder in place; an old one is set aside first and put back if that fails."""
    for path in new.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def tensors_sha256(network: nn.Module) -> str:
    """SHA-256 (hex) of a network's tensors: for each, in order of name, its name, dtype, shape and bytes.

    It does not depend on the file the tensors came from, but on their dtype.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
