"""Tokenizers for pictures, video and sound, by name, behind one small contract.

Importing this package loads no torch: listing and filtering the zoo is instant, and a family's code is imported only when one
of its tokenizers is loaded.
"""

from typing import TYPE_CHECKING, Any

from zoo.registry import Entry, find, info, list_models, register

if TYPE_CHECKING:
    from zoo import generators
    from zoo.loading import create, load
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

__all__ = ["Entry", "Tokenizer", "Tokens", "create", "find", "generators", "info", "list_models", "load", "register"]
__version__ = "0.1.0"

_LAZY = {"load": "zoo.loading", "create": "zoo.loading", "Tokenizer": "zoo.tokenizer", "Tokens": "zoo.tokens"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "generators":
        return import_module("zoo.generators")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
