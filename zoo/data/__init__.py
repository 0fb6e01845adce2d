"""Tokens of whole data sets: `tokenize` makes shards of them, `TokenDataset` reads them. The command is `zoo tokenize`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.data.dataset import TokenDataset
    from zoo.data.plan import Protocol
    from zoo.data.token_shards import TokenSample
    from zoo.data.tokenizing import Progress, Summary, tokenize

__all__ = ["Progress", "Protocol", "Summary", "TokenDataset", "TokenSample", "tokenize"]

_PLACES = {
    "Progress": "tokenizing",
    "Protocol": "plan",
    "Summary": "tokenizing",
    "TokenDataset": "dataset",
    "TokenSample": "token_shards",
    "tokenize": "tokenizing",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")
    return getattr(import_module(f"zoo.data.{_PLACES[name]}"), name)
