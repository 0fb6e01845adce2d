"""Tokenizers whose codes are known without running them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.tokenizer import Tokenizer

CELL = 4


@dataclass(frozen=True, kw_only=True)
class GreyConfig(Config):
    """`seconds` are slept for each batch, so that there is a moment to kill at."""

    seconds: float = 0.0


class Grey(Tokenizer):
    """The mean of each cell of 4 x 4 pixels in 300 steps: codes that need 16 bits; pictures of any size."""

    family = "grey_for_data_sets"
    Config = GreyConfig

    def __init__(self, config: GreyConfig, info: Any = None) -> None:
        super().__init__(config, info)
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[tuple[int, ...]] = []

    @classmethod
    def layout_of(cls, config: GreyConfig) -> dict[str, Any]:
        grid = {"layout": "2d", "downsample": (1, CELL, CELL), "size_multiple": CELL, "native_size": (16, 16)}
        codes = {"discrete": True, "depth": 1, "codebook_size": 300, "vocabulary": (300,)}
        return {"modality": "image", **grid, **codes}

    def _encode(self, x: Tensor, *, tokens: Any, depth: Any, generator: Any) -> Tensor:
        self.batches.append(tuple(x.shape))
        time.sleep(self.config.seconds)
        if x.shape[-1] == 3 * CELL:
            raise RuntimeError("the network does not like this width")
        mosaic = nn.functional.avg_pool2d(x.mean(1, keepdim=True), CELL)
        return ((mosaic + 1) / 2 * 299).round().long().permute(0, 2, 3, 1)


class Loud(Tokenizer):
    """The peak of each 100 samples at 8 kHz as a latent."""

    family = "loud_for_data_sets"
    Config = Config

    def __init__(self, config: Config, info: Any = None) -> None:
        super().__init__(config, info)
        self.weight = nn.Parameter(torch.ones(1))

    @classmethod
    def layout_of(cls, config: Config) -> dict[str, Any]:
        rate = {"sample_rate": 8000, "audio_channels": 1, "frame_rate": 80.0, "size_multiple": 100}
        return {
            "modality": "audio",
            "layout": "1d",
            "downsample": (100,),
            "size_multiple": 100,
            "discrete": False,
            "channels": 1,
            **rate,
        }

    def _encode(self, x: Tensor, *, tokens: Any, depth: Any, generator: Any) -> Tensor:
        return nn.functional.max_pool1d(x.abs(), 100).transpose(1, 2)


def grey(seconds: float = 0.0) -> Grey:
    return Grey(GreyConfig(seconds=seconds)).eval()


class Deadly(Grey):
    """A white picture ends the process, as a fault of a decoder would."""

    family = "deadly_for_data_sets"

    def _encode(self, x: Tensor, *, tokens: Any, depth: Any, generator: Any) -> Tensor:
        if x.max() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(x, tokens=tokens, depth=depth, generator=generator)


def loaded(folder: Path, seconds: float = 0.0, *, deadly: bool = False, device: str = "cpu") -> Grey:
    """A tokenizer, as a worker loads it; which process did it is noted in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).write_text(str(torch.get_num_threads()))
    return (Deadly if deadly else Grey)(GreyConfig(seconds=seconds)).eval().to(device)
