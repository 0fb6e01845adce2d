"""The one way by which recordings change their rate. Imports no torch until it is used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RESAMPLE_RULE", "resample"]

RESAMPLE_RULE = "windowed sinc (Hann) of torchaudio, width 64, rolloff 0.95, cut or zero-filled to round(samples * new / old)"


def resample(x: "Tensor", old: int, new: int) -> "Tensor":
    """Bring a waveform `(..., s)` from `old` to `new` samples a second by `RESAMPLE_RULE`; equal rates give it unchanged.

    Raises:
        ValueError: a rate below 1.
    """
    if old < 1 or new < 1:
        raise ValueError(f"resample: rates {old} and {new}. Allowed: at least 1 sample a second.")
    if old == new:
        return x
    from torch.nn.functional import pad
    from torchaudio.functional import resample as sinc

    y = sinc(x, old, new, lowpass_filter_width=64, rolloff=0.95)
    samples = max(1, round(x.shape[-1] * new / old))
    return pad(y[..., :samples], (0, max(0, samples - y.shape[-1])))
