"""Text as the condition of a generator: embeddings with a mask, and the frozen tower that makes them.

A tower is a text encoder of `transformers` (T5, UMT5) with its tokenizer; it is no part of a generator, is not saved with it and is
loaded when the first text comes. Who has embeddings already needs neither tower nor `transformers`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TextCondition", "TextProjection", "TextTower"]

logger = logging.getLogger(__name__)
_MODELS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}  # model_type of config.json -> class of `transformers`
_NO_LIMIT = 1_000_000  # a tokenizer that says so much says that it knows no longest text


@dataclass(frozen=True)
class TextCondition:
    """Embeddings of texts, one row for each token.

    Attributes:
        embeddings: `(b, m, c)` floating point.
        mask: `(b, m)` bool, True where a row is a token; None takes rows of zeros as padding. An item without a token has no
            condition.

    Raises:
        ValueError: embeddings or a mask of another shape or type, or numbers that are not finite.
    """

    embeddings: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        x, mask = self.embeddings, self.mask
        if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim != 3 or x.shape[1] < 1:
            found = f"{x.dtype} of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
            raise ValueError(f"TextCondition: embeddings is a {found}. Needed: floating-point numbers (b, m, c), m at least 1.")
        if not bool(x.isfinite().all()):
            raise ValueError("TextCondition: embeddings holds numbers that are not finite. Needed: finite text embeddings.")
        if mask is None:
            object.__setattr__(self, "mask", (x != 0).any(-1))
        elif not torch.is_tensor(mask) or mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            found = f"{mask.dtype} of shape {tuple(mask.shape)}" if torch.is_tensor(mask) else type(mask).__name__
            raise ValueError(f"TextCondition: mask is a {found}. Needed: bool of shape {tuple(x.shape[:2])}, True for tokens.")

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def known(self) -> Tensor:
        """The mask `(b, m)`."""
        assert self.mask is not None
        return self.mask

    def to(self, device: torch.device | str) -> Self:
        """Move embeddings and mask."""
        return replace(self, embeddings=self.embeddings.to(device), mask=self.known.to(device))

    def expand(self, n: int) -> Self:
        """Repeat one item for a batch of n."""
        return replace(self, embeddings=self.embeddings.expand(n, -1, -1), mask=self.known.expand(n, -1))

    def join(self, other: "TextCondition") -> Self:
        """Put the items of another condition behind these, the shorter one padded."""
        longest = max(self.embeddings.shape[1], other.embeddings.shape[1])
        a, b = self._padded(longest), other._padded(longest)
        embeddings = torch.cat([a.embeddings, b.embeddings.to(a.embeddings)])
        return replace(self, embeddings=embeddings, mask=torch.cat([a.known, b.known]))

    def replaced(self, chosen: Tensor, other: "TextCondition") -> Self:
        """Take the single item of `other` in place of the items that `chosen (b,)` marks."""
        longest = max(self.embeddings.shape[1], other.embeddings.shape[1])
        a, b = self._padded(longest), other._padded(longest)
        embeddings = torch.where(chosen[:, None, None], b.embeddings.to(a.embeddings), a.embeddings)
        return replace(self, embeddings=embeddings, mask=torch.where(chosen[:, None], b.known, a.known))

    def _padded(self, longest: int) -> Self:
        missing = longest - self.embeddings.shape[1]
        if not missing:
            return self
        return replace(self, embeddings=F.pad(self.embeddings, (0, 0, 0, missing)), mask=F.pad(self.known, (0, missing)))


class TextProjection(nn.Module):
    """Bring text embeddings `(b, m, c)` to the width of a transformer: fc2(gelu(fc1 x)), no biases."""

    def __init__(self, channels: int, hidden: int, width: int, *, exact: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.activation = nn.GELU(approximate="none" if exact else "tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class TextTower:
    """A frozen text encoder and its tokenizer.

    Args:
        model: an encoder of `transformers` that gives `last_hidden_state`.
        tokenizer: its tokenizer; it knows a padding token.
        name: for messages.

    Raises:
        ValueError: a tokenizer without a padding token.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str = "text tower") -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(f"TextTower: the tokenizer of {name} has no padding token. Needed: one, as T5's tokenizers have.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str = "main",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load encoder and tokenizer; only config.json, tokenizer files and safetensors are read, and no code is run.

        Args:
            source: a folder, or a Hub repository such as "google/flan-t5-xl".
            revision: of a repository.
            device, dtype: of the encoder.

        Raises:
            ValueError: no such folder, or an encoder of another kind than T5 and UMT5.
            HubError: the repository could not be read.
            ModuleNotFoundError: `transformers` is not installed.
        """
        text = str(source)
        local = isinstance(source, Path) or Path(text).is_dir() or text.startswith((".", "/", "~"))
        folder = Path(text).expanduser() if local else _fetch(text, revision)
        if not (folder / "config.json").is_file():
            raise ValueError(f"TextTower.load: no config.json in {folder}. Give a folder of a T5 encoder, or a Hub repository.")
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in _MODELS:
            raise ValueError(f"TextTower.load: config.json of {text} has model_type {kind!r}. Known: {', '.join(_MODELS)}.")
        import transformers

        model = getattr(transformers, _MODELS[kind]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.to(device), tokenizer, name=text)

    @property
    def width(self) -> int:
        """Channels of the embeddings."""
        config: Any = self.model.config
        return int(config.d_model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, length: int | None = None) -> TextCondition:
        """Embed texts; an item does not depend on the others.

        Args:
            texts: at least one; "" is a text too.
            length: longest text in tokens, the end token included; longer ones are cut, with a warning. None takes what the
                tokenizer says.

        Raises:
            ValueError: no texts, or one that gives no token.
            TypeError: an item that is no text.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"{self.name}: texts={texts!r}. Needed: a list of at least one text.")
        strangers = [text for text in texts if not isinstance(text, str)]
        if strangers:
            raise TypeError(f"{self.name}: texts holds {strangers[0]!r}. Needed: text only.")
        limit = length or self.tokenizer.model_max_length
        lengths = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        if not min(lengths):
            raise ValueError(f"{self.name}: {texts[lengths.index(0)]!r} gives no token. Needed: a tokenizer that ends every text.")
        if max(lengths) > limit:
            cut = lengths.index(max(lengths))
            logger.warning("%s: text %d has %d tokens; only the first %d are used.", self.name, cut, max(lengths), limit)
        batch = self.tokenizer(
            list(texts),
            padding="longest",
            truncation=limit < _NO_LIMIT,
            max_length=limit if limit < _NO_LIMIT else None,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return TextCondition(states * mask[..., None].to(states), mask.bool())


def _fetch(repo: str, revision: str) -> Path:
    """Bring the files of an encoder from one commit of a repository; give their folder."""
    from zoo.hub import HubError, check_repo_id, fetch

    check_repo_id(repo, function="generators.TextTower.load")
    folder = fetch(repo, "config.json", revision=revision).parent

    def take(name: str) -> Path | None:
        try:
            return fetch(repo, name, revision=folder.name)
        except HubError as error:
            if error.kind != "missing":
                raise
            return None

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        take(name)
    fetch(repo, "tokenizer.json", revision=folder.name)
    index = take("model.safetensors.index.json")
    if index is None:
        fetch(repo, "model.safetensors", revision=folder.name)
    else:
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            fetch(repo, name, revision=folder.name)
    return folder
