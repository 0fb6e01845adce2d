"""What the continuous video autoencoders of diffusers share here: steps, the mode or a sample, and normalised latents.

Shapes: `(b, t, h, w, c)` outside of the wrapped networks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.layers.causal_conv import Memory
from zoo.layers.steps import Stepper, StepStream
from zoo.streaming import Stream
from zoo.tokens import Tokens

__all__ = ["GaussianVideo"]

_LOGVAR = (-30.0, 20.0)


class GaussianVideo(nn.Module):
    """Methods of a tokenizer whose encoder gives mean and log variance of each position; comes before `Tokenizer` in its bases.

    A family implements `encoder_steps` and `decoder_steps` on latents that are not normalised, and calls `set_statistics`.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and deviation of each channel: latents leave as `(z - mean) / std`."""
        self.register_buffer("latents_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("latents_std", torch.tensor(std), persistent=False)

    def encoder_steps(self) -> Stepper:
        """Steps from frames `(b, t, h, w, 3)` to mean and log variance `(b, t', h', w', 2 c)`."""
        raise NotImplementedError

    def decoder_steps(self) -> Stepper:
        """Steps from latents that are not normalised to frames."""
        raise NotImplementedError

    def moments(self, x: Tensor) -> Tensor:
        """Mean and log variance, not normalised, `(b, t', h', w', 2 c)` of whole clips `(b, 3, t, h, w)` of a legal size."""
        data = self.encoder_steps().push(x.permute(0, 2, 3, 4, 1), last=True)
        assert data is not None
        return data

    def decode_raw(self, z: Tensor) -> Tensor:
        """Frames `(b, 3, t, h, w)` of latents that are not normalised."""
        y = self.decoder_steps().push(z, last=True)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Frames `(b, 3, t, h, w)` of normalised latents."""
        return self.decode_raw(z * self.latents_std + self.latents_mean)

    def _normalised_mode(self, moments: Tensor) -> Tensor:
        return (moments.chunk(2, -1)[0] - self.latents_mean) / self.latents_std

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        moments = self.moments(x)
        if generator is None:
            return self._normalised_mode(moments)
        mean, logvar = moments.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + (logvar.clamp(*_LOGVAR) / 2).exp() * noise - self.latents_mean) / self.latents_std

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_latents(tokens.data)

    def _stream(self) -> Stream:
        decoder = self.decoder_steps()
        decoder.network = self._of_normalised(decoder.network)
        return StepStream(self, self.encoder_steps(), decoder, final=self._normalised_mode)  # type: ignore[arg-type]

    def _of_normalised(self, network: Callable[[Tensor, Memory], Tensor]) -> Callable[[Tensor, Memory], Tensor]:
        return lambda z, memory: network(z * self.latents_std + self.latents_mean, memory)
