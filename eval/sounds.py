"""Sounds as the scorers read them: batches that remember what was computed of them, from corpora of recordings.

The corpora are those that recipes train on (`recipes.data.sound_corpus`). Waveforms are float32 in [-1, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from eval.resampling import resample
from recipes.data.sound_corpus import (
    SOUND_SUFFIXES,
    SoundCorpus,
    SoundFolder,
    SoundSelection,
    SoundShards,
    UnreadableSoundError,
    decode_sound,
    open_sounds,
)

__all__ = [
    "SOUND_SUFFIXES",
    "SoundCorpus",
    "SoundFolder",
    "SoundSelection",
    "SoundShards",
    "Sounds",
    "UnreadableSoundError",
    "decode_sound",
    "open_sounds",
    "pcm16",
]


def pcm16(x: Tensor) -> Tensor:
    """Clamp to [-1, 1] and round to 16 bits, as a sound file would hold it; float32, values v / 32768."""
    return (x.float() * 32768).round().clamp(-32768, 32767) / 32768


class Sounds:
    """A batch of mono waveforms of unequal length at one rate; what is computed of it is computed once.

    Args:
        waves: one `(s,)` floating point tensor in [-1, 1] for each item, or a tensor `(b, s)`.
        sample_rate: samples a second.
        texts: what is said in each item; None where it is not known.

    Raises:
        ValueError: no items, a rate below 1, an empty waveform, another rank, or texts that do not fit.
    """

    def __init__(self, waves: Tensor | Sequence[Tensor], sample_rate: int, *, texts: Sequence[str | None] | None = None) -> None:
        self.waves = [wave.detach().float().cpu() for wave in waves]
        self.sample_rate = int(sample_rate)
        self.texts: list[str | None] = [None] * len(self.waves) if texts is None else list(texts)
        self._once: dict[Any, Any] = {}
        if self.sample_rate < 1:
            raise ValueError(f"Sounds: sample_rate={sample_rate}. Allowed: at least 1.")
        if not self.waves:
            raise ValueError("Sounds: there is no item. Give at least one.")
        wrong = [tuple(wave.shape) for wave in self.waves if wave.ndim != 1 or not len(wave)]
        if wrong:
            raise ValueError(f"Sounds: a waveform has shape {wrong[0]}. Needed: (s,), mono, with at least one sample.")
        if len(self.texts) != len(self.waves):
            raise ValueError(f"Sounds: {len(self.texts)} texts for {len(self.waves)} items. Give one for each.")

    def __len__(self) -> int:
        return len(self.waves)

    def at(self, sample_rate: int) -> list[Tensor]:
        """Give the waveforms at another rate, resampled once."""
        return self.once(("at", sample_rate), lambda: [resample(wave, self.sample_rate, sample_rate) for wave in self.waves])

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Give what `compute` gave for this key the first time."""
        if key not in self._once:
            self._once[key] = compute()
        return self._once[key]
