"""A tokenizer as a folder that anybody can load: our config.json, the weights, and the way to the Hub."""

from dataclasses import fields
from typing import Any

from zoo.tokenizer import Tokenizer

__all__ = ["folder_config"]

_LEFT_OUT = {"name", "family", "config", "weights"}


def folder_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Give the content of config.json: family, configuration, and what the entry says about origin and licence."""
    entry = tokenizer.info.to_dict()
    return {
        "format": "zoo-tokenizer-1",
        "name": tokenizer.info.name,
        "family": tokenizer.family,
        "config": tokenizer.config.to_dict(),
        "entry": {f.name: entry[f.name] for f in fields(tokenizer.info) if f.name in entry and f.name not in _LEFT_OUT},
    }
