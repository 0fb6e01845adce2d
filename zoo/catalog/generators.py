"""Generators over the zoo's tokens."""

from zoo.generators.registry import GeneratorEntry

__all__ = ["ENTRIES"]

ENTRIES: tuple[GeneratorEntry, ...] = ()
