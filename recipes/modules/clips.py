"""Train a tokenizer of clips: frames and still pictures together, pixels, features, a discriminator, the quantizer's own loss.

Every batch holds clips and still pictures, as joint training of C-ViViT (arXiv 2210.02399, section 2.1) and MAGVIT-v2 wants it: a
picture is a clip of one frame and passes through the same weights. Losses of the picture look at single frames, of clips and stills
alike. Serves the families `cvivit`, `vidtok` and `cosmos`. What differs between them is one function each, below.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.modules.adversarial import AdversarialRecipe, Reconstruction
from zoo.quantizers.base import Quantized
from zoo.transforms.quality import psnr_db

__all__ = ["ClipRecipe"]

_LOGGED = ("used_fraction", "perplexity", "sample_entropy", "batch_entropy")


class _Passed(NamedTuple):
    """Clips after their way through a tokenizer, with the quantizer's result or the divergence of the latents."""

    clips: Tensor
    quantized: Quantized | None = None
    divergence: Tensor | None = None


def _cvivit(tok: Any, x: Tensor, draws: torch.Generator | None) -> _Passed:
    quantized = tok.quantize(tok.encode_vectors(x))
    return _Passed(tok.decode_vectors(quantized.x), quantized)


def _vidtok(tok: Any, x: Tensor, draws: torch.Generator | None) -> _Passed:
    h = tok.moments(x)
    if tok.quantizer is not None:
        quantized = tok.quantizer(h)
        return _Passed(tok.decode_vectors(quantized.x), quantized)
    mean, logvar = h.float().chunk(2, -1)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1).mean()
    noise = 0 if draws is None else (logvar / 2).exp() * torch.randn(mean.shape, generator=draws, device=mean.device)
    return _Passed(tok.decode_vectors(mean + noise), divergence=divergence)


def _cosmos(tok: Any, x: Tensor, draws: torch.Generator | None) -> _Passed:
    z = tok.encode_latents(x)
    if tok.quantizer is None:
        return _Passed(tok.decode_latents(z))
    quantized = tok.quantizer(z)
    return _Passed(tok.decode_latents(quantized.x), quantized)


class _Way(NamedTuple):
    """How a family turns clips into clips, and where its decoder ends."""

    through: Callable[[Any, Tensor, torch.Generator | None], _Passed]
    last_layer: Callable[[Any, bool], Tensor]  # of stills, if True


_WAYS: dict[str, _Way] = {
    "cvivit": _Way(_cvivit, lambda tok, stills: (tok.pixels_first if stills else tok.pixels_later).weight),
    "vidtok": _Way(_vidtok, lambda tok, stills: tok.decoder.last_layer),
    "cosmos": _Way(_cosmos, lambda tok, stills: tok.decoder.last_layer),
}


def frames_of(x: Tensor) -> Tensor:
    """Give the frames `(b * t, 3, h, w)` of clips `(b, 3, t, h, w)`."""
    return x.transpose(1, 2).flatten(0, 1)


class ClipRecipe(AdversarialRecipe):
    """Train on batches with `clips (b, 3, t, h, w)` and `stills (s, 3, h, w)` in [-1, 1] (`recipes.data.clips`).

    Args:
        tokenizer: catalog name of one of the families above.
        stills_every: each so many steps the batch's still pictures are trained on instead of its clips; None never.
        quantizer_weight: of the quantizer's own loss (commitment, entropy).
        kl_weight: of the divergence from the unit Gaussian, summed over channels, averaged over positions; continuous families.
        options: of `AdversarialRecipe`, and of `TokenizerRecipe` below it.

    Raises:
        ValueError: a family that this recipe does not train, or `stills_every` below 2.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        stills_every: int | None = 4,
        quantizer_weight: float = 1.0,
        kl_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        family = self.tokenizer.family
        if family not in _WAYS:
            raise ValueError(f"ClipRecipe: {tokenizer} is of the family {family!r}. Allowed: {', '.join(sorted(_WAYS))}.")
        if stills_every is not None and stills_every < 2:
            raise ValueError(f"ClipRecipe: stills_every={stills_every} leaves no step for clips. Use 2 or more, or null for none.")
        self.way = _WAYS[family]
        self.stills_every = stills_every
        self.quantizer_weight, self.kl_weight = quantizer_weight, kl_weight
        self._stills = False  # what the step in hand trains on

    def last_layer(self) -> Tensor:
        return self.way.last_layer(self.tokenizer, self._stills)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        self._stills = self.stills_every is not None and step % self.stills_every == self.stills_every - 1
        x = batch.stills.unsqueeze(2) if self._stills else batch.clips
        values, fake = self.generator_step(x, step)
        if self.playing(step):
            values |= self.discriminator_step(x, fake, step)
        kind = "stills" if self._stills else "clips"
        self.log_scores("train", {f"{kind}/{name}": value for name, value in values.items()}, batch_size=len(x))

    def reconstruct(self, x: Tensor, draws: torch.Generator) -> Reconstruction:
        """Encode, quantize and decode clips `(b, 3, t, h, w)` with gradient; `images` of the result are clips."""
        passed = self.way.through(self.tokenizer, x, draws)
        loss, values = passed.clips.new_zeros((), dtype=torch.float32), {}
        if passed.quantized is not None:
            loss = loss + self.quantizer_weight * passed.quantized.loss
            stats = passed.quantized.stats
            values = {"quantizer": passed.quantized.loss.detach()} | {name: stats[name].mean() for name in _LOGGED if name in stats}
        if passed.divergence is not None:
            loss = loss + self.kl_weight * passed.divergence
            values["divergence"] = passed.divergence.detach()
        return Reconstruction(passed.clips, loss, values)

    def pull(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the gradient of the losses of all frames at `y (b, 3, t, h, w)`, same shape, and what to log."""
        pull, values = super().pull(frames_of(x), frames_of(y), step)
        return pull.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2), values

    def discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        return super().discriminator_step(frames_of(real), frames_of(fake), step)

    # -- validation ------------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """PSNR of the frames, the error of the change between frames, and which codes are used at all."""
        x = batch.clips
        passed = self.way.through(self.tokenizer, x, None)
        y = passed.clips.float()
        values = {
            "psnr_db": psnr_db(frames_of(x), frames_of(y)).mean(),
            "change_error": (x.diff(dim=2) - y.diff(dim=2)).abs().mean(),
        }
        if passed.quantized is not None:
            self.count_codes(passed.quantized.codes)
        self.log_scores("val", values, batch_size=len(x))
