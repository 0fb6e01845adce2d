"""Generators: models of tokens, one file per system, behind one contract.

    gen = zoo.generators.load("xar_b_in1k")
    tokens = gen.sample(condition=207, n=4, seed=0, guidance=2.7)
    pictures = tokenizer.decode(tokens)

Importing this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

from zoo.generators.registry import GeneratorEntry, find, info, list_models

if TYPE_CHECKING:
    from zoo.generators.base import Generator
    from zoo.generators.loading import create, create_for, load, save
    from zoo.generators.text import TextCondition, TextTower

__all__ = [
    "Generator",
    "GeneratorEntry",
    "TextCondition",
    "TextTower",
    "create",
    "create_for",
    "find",
    "info",
    "list_models",
    "load",
    "save",
]

_LAZY = {
    "Generator": "zoo.generators.base",
    "create": "zoo.generators.loading",
    "create_for": "zoo.generators.loading",
    "load": "zoo.generators.loading",
    "save": "zoo.generators.loading",
    "TextCondition": "zoo.generators.text",
    "TextTower": "zoo.generators.text",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo.generators' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
