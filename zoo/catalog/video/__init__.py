"""Video tokenizers of the zoo: one file of entries for each family, named as the family's own file in `zoo/video/`.

A file that is put here is found; nothing else lists it.
"""

from importlib import import_module
from pkgutil import iter_modules

from zoo.registry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = tuple(
    entry for module in iter_modules(__path__) for entry in import_module(f"{__name__}.{module.name}").ENTRIES
)
