"""Clips as the scorers read them: batches of 8-bit frames of unequal number, which remember what was computed of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Clips"]


class Clips:
    """A batch of clips; what is computed of it is computed once.

    Args:
        frames: one uint8 tensor `(t, 3, h, w)` for each clip; numbers of frames may differ.
        frame_rates: frames a second of each clip.

    Raises:
        ValueError: no clip, another dtype or shape, a clip without frames, or rates that do not fit.
    """

    def __init__(self, frames: Sequence[Tensor], frame_rates: Sequence[float]) -> None:
        self.frames = [clip.detach() for clip in frames]
        self.frame_rates = [float(rate) for rate in frame_rates]
        self._once: dict[Any, Any] = {}
        if not self.frames:
            raise ValueError("Clips: there is no clip. Give at least one.")
        for clip in self.frames:
            if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[1] != 3 or 0 in clip.shape:
                raise ValueError(
                    f"Clips: a clip has dtype {clip.dtype} and shape {tuple(clip.shape)}. Needed: torch.uint8 (t, 3, h, w), "
                    "each at least 1; zoo.media.to_uint8 rounds decoded frames."
                )
        if len(self.frame_rates) != len(self.frames) or not all(0 < rate < float("inf") for rate in self.frame_rates):
            raise ValueError(f"Clips: frame_rates={self.frame_rates} for {len(self.frames)} clips. Needed: one above 0 for each.")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def seconds(self) -> Tensor:
        """`(b,)` float64: how long each clip lasts."""
        counts = torch.tensor([len(clip) for clip in self.frames], dtype=torch.float64)
        return counts / torch.tensor(self.frame_rates, dtype=torch.float64)

    def to(self, device: torch.device | str) -> "Clips":
        """Give the clips on a device: these where they are there already, so that what was computed of them is kept."""
        if all(clip.device == torch.device(device) for clip in self.frames):
            return self
        return Clips([clip.to(device) for clip in self.frames], self.frame_rates)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Give what `compute` gave for this key the first time."""
        if key not in self._once:
            self._once[key] = compute()
        return self._once[key]
