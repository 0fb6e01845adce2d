"""Which errors are the user's to mend (one clear line), and which are faults of the program (a traceback)."""

import dis
import errno
import re

__all__ = ["users_error"]

_OURS = ("zoo", "recipes", "eval")
_RAISE = dis.opmap["RAISE_VARARGS"]
_ABOUT_A_FILE = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def users_error(error: Exception) -> str | None:
    """Give the line to show, or None where a traceback is right.

    A ValueError or TypeError counts as the user's only where code of this project raised it on purpose: the same types come out of
    faults (a call with a wrong argument, a failed conversion), and those must stay visible.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return _missing_package(error.name)
    if isinstance(error, OSError) and not _raised_by_us(error):
        return _about_a_file(error)
    return str(error) if _raised_by_us(error) else None


def _raised_by_us(error: BaseException) -> bool:
    last = error.__traceback__
    if last is None:
        return False
    while last.tb_next is not None:
        last = last.tb_next
    package = str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in _OURS and last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


def _about_a_file(error: OSError) -> str | None:
    if error.errno == errno.ENOSPC:
        return f"the disk is full{f': {error.filename}' if error.filename else ''}. What was finished before stays."
    if isinstance(error, _ABOUT_A_FILE) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return None


def _missing_package(name: str) -> str | None:
    """Name the extra that holds a package; a missing package that no extra holds is a broken installation."""
    from importlib.metadata import PackageNotFoundError, requires

    top = name.partition(".")[0]
    if top in _OURS:
        return None
    try:
        declared = requires("tokenizer-zoo") or []
    except PackageNotFoundError:
        return None
    wanted = top.replace("_", "-").lower()
    for line in declared:
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if package and package[0].replace("_", "-").lower() == wanted:
            what = f"tokenizer-zoo[{extra[1]}]" if extra else "tokenizer-zoo"
            return f"the package {top} is not installed. Install it: pip install '{what}'"
    return None
