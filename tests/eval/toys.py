"""Tokenizers small enough to know every number of, and pictures for them."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from recipes.data.corpus import ImageCorpus
from zoo.config import Config
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens


class Pictures(ImageCorpus):
    """Pictures held as arrays; the bytes are PNG files."""

    def __init__(self, arrays: list[np.ndarray], source: str = "toys") -> None:
        self.arrays = arrays
        self.source = source

    def __len__(self) -> int:
        return len(self.arrays)

    def key(self, i: int) -> str:
        return f"picture_{i}"

    def read_bytes(self, i: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.arrays[i]).save(buffer, "PNG")
        return buffer.getvalue()

    def record(self, i: int) -> dict[str, Any]:
        return {"key": self.key(i)}


def waves(number: int, side: int) -> np.ndarray:
    """Picture `number`: colour waves with edges and a little noise, uint8 `(side, side, 3)`."""
    y, x = np.mgrid[0:side, 0:side] / side
    phase = np.array([0.0, 2.0, 4.0]) + number
    smooth = np.sin(phase + (3 + number % 4) * 2 * x[..., None] + (2 + number % 3) * 3 * y[..., None])
    edges = 0.4 * (((x * (4 + number % 5)).astype(int) + (y * 5).astype(int)) % 2)[..., None]
    noise = np.random.default_rng(number).normal(0, 0.06, (side, side, 3))
    return np.clip(127.5 + 90 * (smooth + edges - 0.2 + noise), 0, 255).astype(np.uint8)


def pictures(count: int, side: int) -> Pictures:
    return Pictures([waves(number, side) for number in range(count)])


def entry(name: str, **facts: Any) -> Entry:
    shared = {"family": "toy", "modality": "image", "summary": "", "native_size": (16, 16)}
    return Entry(name=name, **{**shared, **facts})


class BlockColours(Tokenizer):
    """16 ordered codes: the colour of each 4x4 block of a 16x16 picture in 3 levels a channel; a missing block is mid-grey."""

    def __init__(self) -> None:
        facts = entry("toy_blocks", layout="1d", discrete=True, ordered=True, tokens=16, codebook_size=27, vocabulary=(27,))
        super().__init__(Config(), facts)
        self.empty = nn.Parameter(torch.zeros(()))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        means = nn.functional.avg_pool2d(x, 4).flatten(2)
        levels = ((means + 1) * 1.5).floor().clamp(0, 2).long()
        return (levels * torch.tensor([9, 3, 1]).view(1, 3, 1)).sum(1)[:, :tokens, None]

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        codes = tokens.data[..., 0]
        levels = torch.stack([codes // 9, codes // 3 % 3, codes % 3], 1)
        blocks = self.empty.expand(len(codes), 3, 16).clone()
        blocks[:, :, : codes.shape[1]] = (levels - 1) * (2 / 3)
        return nn.functional.interpolate(blocks.view(-1, 3, 4, 4), scale_factor=4)


class Pixels(Tokenizer):
    """Latents are the pixels; the decoder blurs by `radius`, adds seeded noise, and gives NaN for pictures named by `broken`.

    `broken` is the smallest mean (in [-1, 1]) of a picture that breaks the decoder.
    """

    def __init__(self, side: int = 16, *, noise: float = 0.0, broken: float | None = None) -> None:
        facts = entry(
            "toy_pixels",
            layout="2d",
            discrete=False,
            channels=3,
            tokens=side * side,
            native_size=(side, side),
            downsample=(1, 1, 1),
            stochastic_decode=noise > 0,
        )
        super().__init__(Config(), facts)
        self.noise, self.broken = noise, broken
        self.weight = nn.Parameter(torch.ones(()))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return (x * self.weight).permute(0, 2, 3, 1).contiguous()

    def _decode(self, tokens: Tokens, size: tuple[int, ...], *, radius: int = 0, seed: int | list[int] = 0) -> Tensor:
        y = tokens.data.permute(0, 3, 1, 2)
        if radius:
            padded = nn.functional.pad(y, (radius,) * 4, mode="reflect")
            y = nn.functional.avg_pool2d(padded, 2 * radius + 1, stride=1)
        if self.broken is not None:
            y = y.masked_fill(y.mean((1, 2, 3), keepdim=True) >= self.broken, torch.nan)
        if self.noise:
            draws = [torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(one)) for one in seed]
            y = y + self.noise * torch.stack(draws)
        return y


def twelve_features(images: Tensor) -> Tensor:
    """A fixed random projection of uint8 pictures `(b, 3, h, w)` to `(b, 12)`."""
    flat = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
    weights = torch.randn(flat.shape[1], 12, generator=torch.Generator().manual_seed(5))
    return flat @ weights


def stripe_scores(numbers: list[int]) -> dict[str, Any]:
    """Score some of 9 pictures against their blocks, and give every scorer's result over all processes."""
    from eval.scorers import RECORDS, make_scorers
    from eval.scorers.distribution import FrechetDistance, KernelDistance, Precision
    from zoo.media import from_pil, to_uint8

    corpus, tokenizer = pictures(9, 16), BlockColours()
    scorers = make_scorers(["psnr_db", "bits_per_pixel", "codebook_use"], spec=tokenizer.spec, positions=16)
    scorers["fd"] = FrechetDistance(RECORDS["fd_mbv2"], twelve_features, dimensions=12)
    scorers["kid"] = KernelDistance(RECORDS["kid_mbv2"], twelve_features)
    scorers["precision"] = Precision(RECORDS["precision_mbv2"], twelve_features)
    for first in range(0, len(numbers), 2):
        index = torch.tensor(numbers[first : first + 2])
        x = from_pil([corpus.read(number) for number in index.tolist()])
        tokens = tokenizer.encode(x)
        pair = (to_uint8(x), to_uint8(tokenizer.decode(tokens)))
        failed = index == 4
        for scorer in scorers.values():
            scorer.update(*((tokens,) if scorer.record.kind == "tokens" else pair), index=index, failed=failed)
    out: dict[str, Any] = {name: vars(scorer.result()) for name, scorer in scorers.items()}
    out["details"] = scorers["codebook_use"].details()
    out["items"] = [part.tolist() for part in scorers["psnr_db"].per_item()]
    return out


def whole_run() -> dict[str, Any]:
    """Evaluate a decoder that draws noise; in several processes each takes a stripe."""
    from eval.reconstruction import evaluate

    result = evaluate(Pixels(noise=0.2), pictures(7, 16), scorers=["psnr_db", "ssim", "bits_per_pixel"], batch_size=2)
    points = result.to_dict()["points"]
    return {"points": points, "items": [[row.item, row.key, dict(row.scores)] for row in result.items]}


def run_rank(rank: int, world: int, store: str, out: str) -> None:
    """Be one process of several; the first writes what all found."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    scores = {"stripes": stripe_scores(list(range(9))[rank::world]), "run": whole_run()}
    if rank == 0:
        Path(out).write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


def run_command(rank: int, world: int, port: int, words: list[str]) -> None:
    """Run `zoo eval` as torchrun starts it, with a toy for every name."""
    import zoo
    from eval.reconstruction import main

    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    zoo.load = lambda name, **options: BlockColours()
    assert main(words) == 0
