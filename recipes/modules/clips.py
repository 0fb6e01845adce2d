"""Train a tokenizer of clips: frames and still pictures together, pixels, features, a discriminator, the quantizer's own loss.

Every batch holds clips and still pictures, as joint training of C-ViViT (arXiv 2210.02399, section 2.1) and MAGVIT-v2 wants it: a
picture is a clip of one frame and passes through the same weights. Losses of the picture look at single frames, of clips and stills
alike; those of pixels at all frames, those of networks at a few of each clip where `frames_shown` says so. Serves the families
`cvivit`, `vidtok` and `cosmos`. What differs between them is one function each, below.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from recipes.modules.autoencoder import AutoencoderRecipe, Passed, Way, sampled
from zoo.transforms.quality import psnr_db

__all__ = ["ClipRecipe", "frames_of"]


def _cvivit(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    quantized = tok.quantize(tok.encode_vectors(x))
    return Passed(tok.decode_vectors(quantized.x), quantized)


def _vidtok(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    h = tok.moments(x)
    if tok.quantizer is not None:
        quantized = tok.quantizer(h)
        return Passed(tok.decode_vectors(quantized.x), quantized)
    latents, divergence = sampled(*h.chunk(2, -1), draws, axis=-1)
    return Passed(tok.decode_vectors(latents), divergence=divergence)


def _cosmos(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    z = tok.encode_latents(x)
    if tok.quantizer is None:
        return Passed(tok.decode_latents(z))
    quantized = tok.quantizer(z)
    return Passed(tok.decode_latents(quantized.x), quantized)


def _own(tok: Any) -> Tensor:
    return tok.decoder.last_layer


_WAYS: dict[str, Way] = {
    "cvivit": Way(_cvivit, lambda tok: tok.pixels_later.weight),
    "vidtok": Way(_vidtok, _own),
    "cosmos": Way(_cosmos, _own),
}


def frames_of(x: Tensor) -> Tensor:
    """Give the frames `(b * t, 3, h, w)` of clips `(b, 3, t, h, w)`."""
    return x.transpose(1, 2).flatten(0, 1)


class ClipRecipe(AutoencoderRecipe):
    """Train on batches with `clips (b, 3, t, h, w)` and `stills (s, 3, h, w)` in [-1, 1] (`recipes.data.clips`).

    Args:
        tokenizer: catalog name of one of the families above.
        stills_every: each so many steps the batch's still pictures are trained on instead of its clips; None never.
        frames_shown: so many frames of each clip, drawn anew at each step, are looked at by the networks of the loss (features and
            discriminator), whose time is often longer than the tokenizer's own; None shows all.
        options: of `AutoencoderRecipe`, and of those below it.

    Raises:
        ValueError: a family that this recipe does not train, `stills_every` below 2, or `frames_shown` below 1.
    """

    ways: ClassVar[Mapping[str, Way]] = _WAYS

    def __init__(self, tokenizer: str, *, stills_every: int | None = 4, frames_shown: int | None = None, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        if stills_every is not None and stills_every < 2:
            raise ValueError(f"ClipRecipe: stills_every={stills_every} leaves no step for clips. Use 2 or more, or null for none.")
        if frames_shown is not None and frames_shown < 1:
            raise ValueError(f"ClipRecipe: frames_shown={frames_shown}. Use 1 or more, or null for all frames.")
        self.stills_every, self.frames_shown = stills_every, frames_shown
        self._shown: Tensor | None = None  # numbers of the frames in hand that networks look at; None for all
        self._stills = False  # what the step in hand trains on

    def last_layer(self) -> Tensor:
        """Weight of the layer that makes the frames in hand; C-ViViT has one of its own for first frames."""
        if self._stills and self.tokenizer.family == "cvivit":
            return self.tokenizer.pixels_first.weight
        return super().last_layer()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        self._stills = self.stills_every is not None and step % self.stills_every == self.stills_every - 1
        if self._stills and not len(batch.stills):
            raise ValueError(
                f"ClipRecipe: stills_every={self.stills_every}, but the batch holds no still pictures. Give the data module "
                "stills= and stills_per_clip=, or set stills_every to null."
            )
        x = batch.stills.unsqueeze(2) if self._stills else batch.clips
        self._shown = self._draw_frames(x, step)
        values, fake = self.generator_step(x, step)
        if self.playing(step):
            values |= self.discriminator_step(x, fake, step)
        kind = "stills" if self._stills else "clips"
        self.log_scores("train", {f"{kind}/{name}": value for name, value in values.items()}, batch_size=len(x))

    def pull(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the gradient of the losses of all frames at `y (b, 3, t, h, w)`, same shape, and what to log."""
        pull, values = super().pull(frames_of(x), frames_of(y), step)
        return pull.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2), values

    def _draw_frames(self, x: Tensor, step: int) -> Tensor | None:
        """Choose among the frames of `x (b, 3, t, h, w)`; numbers as `frames_of` lays them."""
        b, t = x.shape[0], x.shape[2]
        if self.frames_shown is None or self.frames_shown >= t:
            return None
        order = torch.rand(b, t, generator=self.draws(stage="frames", step=step), device=x.device).argsort(1)
        return (order[:, : self.frames_shown] + t * torch.arange(b, device=x.device)[:, None]).flatten()

    def shown(self, x: Tensor) -> Tensor:
        """The frames `(n, 3, h, w)` that this step drew of all, `(b * t, 3, h, w)`."""
        return x if self._shown is None else x[self._shown]

    def discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        return super().discriminator_step(frames_of(real), frames_of(fake), step)

    # -- validation ------------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """PSNR of the frames, the error of the change between frames, and which codes are used at all."""
        x = batch.clips
        passed = self.way.through(self.tokenizer, x, None)
        y = passed.images.float()
        values = {
            "psnr_db": psnr_db(frames_of(x), frames_of(y)).mean(),
            "change_error": (x.diff(dim=2) - y.diff(dim=2)).abs().mean(),
        }
        if passed.quantized is not None:
            self.count_codes(passed.quantized.codes)
        self.log_scores("val", values, batch_size=len(x))
