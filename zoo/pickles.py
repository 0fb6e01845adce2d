"""Reading a pickle of tensors without running anything that it names.

PyTorch's own reader refuses every name that is no tensor's. Checkpoints of training frameworks hold other objects beside the
tensors (arguments, settings, paths, states of callbacks), so they would be refused whole. Here such objects are read as empty
stand-ins: the names in the file are never looked up, no class of theirs is imported, made or called, and what they held is lost.
A name that is not of the frameworks listed here refuses the file, as before.
"""

import os
import pickle
from collections import OrderedDict
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

__all__ = ["read_pickle"]

# Packages whose objects stand beside the tensors in the checkpoints of training frameworks.
_BESIDE = (
    *("argparse", "jsonargparse", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf", "pathlib"),
    *("pytorch_lightning", "torchmetrics", "typing"),
)
# And what these objects name themselves.
_PLAIN = (
    *("builtins.bool", "builtins.dict", "builtins.float", "builtins.int", "builtins.list", "builtins.str", "builtins.tuple"),
    *("collections.defaultdict", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)
_DICTIONARIES = ("collections.defaultdict", ".AttributeDict")


class _StandIn:
    """An object whose class is not looked up; it takes whatever the file gives it and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


class _Items:
    """Makes a plain dictionary of a dictionary of another class: PyTorch's reader puts items into no other."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a file of `torch.save` onto the CPU.

    Args:
        path: tensors, plain values and, beside them, objects of training frameworks, which come back as empty
            objects, or as dictionaries where they are such.

    Raises:
        pickle.UnpicklingError: any other name in the file; the message lists them. Nothing of the file was run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _foreign_names(path)
        refused = [name for name in names if name not in _PLAIN and name.partition(".")[0] not in _BESIDE]
        if refused:
            raise pickle.UnpicklingError(f"it names {', '.join(refused[:10])}{', ...' if len(refused) > 10 else ''}") from error
        if not names:
            raise
    with safe_globals([(_Items if name.endswith(_DICTIONARIES) else _StandIn, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _foreign_names(path: str | os.PathLike[str]) -> list[str]:
    """Names in the file that PyTorch does not allow; none where it is no archive of today's form."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except ValueError:
        return []
