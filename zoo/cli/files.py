"""Files that the user named: what kind they are, and folders opened. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from zoo.file_kinds import kind_of
from zoo.registry import Entry, find

__all__ = ["expand_inputs", "kind_of", "refuse_other_kinds"]


def expand_inputs(
    inputs: Sequence[str], *, command: str, kind: str | None = None, ending: str | None = None
) -> list[tuple[Path, Path]]:
    """Give every file named, folders opened (with what is below them, in order of their names).

    Args:
        inputs: files and folders.
        command: for the errors.
        kind: modality of the files to take from folders.
        ending: or the ending of their names.

    Returns:
        Pairs of the file and its place below the input it came from, which is used to name the output.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without such files.
    """
    found: list[tuple[Path, Path]] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            inside = [p for p in inside if (kind_of(p) == kind if ending is None else p.name.endswith(ending))]
            if not inside:
                raise ValueError(f"{command}: the folder {path} holds no {ending or kind} files. Name another, or files.")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f"{command}: no file or folder {path}.")
    return found


def refuse_other_kinds(paths: Sequence[Path], entry: Entry) -> None:
    """Refuse a sound for an image tokenizer and the like, by the ending of the name; a picture is a clip of one frame.

    Raises:
        ValueError: with the tokenizers that take such a file, or that there are none yet.
    """
    words = {"image": "picture", "audio": "sound", "video": "video"}
    for path in paths:
        kind = kind_of(path)
        if kind in (None, entry.modality) or (kind, entry.modality) == ("image", "video"):
            continue
        fitting = [other.name for other in find(modality=kind)]
        if fitting:
            advice = f"Use one of {', '.join(fitting[:3])} (`zoo list --modality {kind}` shows all)."
        else:
            advice = f"Tokenizers for {kind} are not yet in the zoo."
        raise ValueError(f"zoo encode: {path} is a {words[kind]}, but {entry.name} is for {words[entry.modality]}s. {advice}")
