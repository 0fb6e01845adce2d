"""Networks that look at 8-bit pictures for the scorers: two from installed wheels, and the official ones, which are downloaded.

The official Inception (FID) and the trunks of LPIPS are not in any package. They are taken from torch's own cache folder
(`TORCH_HOME`), or downloaded into it once; where neither works there is one clear error and never another network instead.
"""

import copy
import hashlib
import os
import re
import urllib.error
import urllib.request
import warnings
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.scorers.records import ScorerRecord
from zoo.layers.features import load_features

__all__ = [
    "InceptionFeatures",
    "LPIPSNetwork",
    "Networks",
    "PictureFeatures",
    "PublishedWeights",
    "WeightsUnavailableError",
    "resized",
]

Networks = dict[tuple[str, int], Any]
_TIMEOUT = 20.0  # seconds without an answer
_CHUNK = 2**20


class WeightsUnavailableError(OSError):
    """Official weights are neither in the cache nor to be downloaded, or the file there is not the published one."""


class PublishedWeights(NamedTuple):
    """A file of weights on the web, named by the first digits of its SHA-256.

    Attributes:
        url: ends in `-<first hex digits of the SHA-256>.pth`.
        instead: scorers that need no download, for the error's advice.
    """

    url: str
    instead: str

    def path(self, scorer: str) -> tuple[Path, str]:
        """Give the local file and its SHA-256, downloading it on first use.

        Raises:
            WeightsUnavailableError: no file and no download, or a damaged file.
        """
        name = self.url.rpartition("/")[2]
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        start = re.search(r"-([0-9a-f]{8,})\.pth$", name)
        assert start is not None
        if not path.is_file():
            self._download(path, scorer, start[1])
        digest = _sha256(path)
        if not digest.startswith(start[1]):
            raise WeightsUnavailableError(
                f"scorer {scorer}: {path} is damaged: its SHA-256 starts with {digest[:8]}, not {start[1]}. "
                "Delete it; the next run downloads it again."
            )
        return path, digest

    def _download(self, path: Path, scorer: str, start: str) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise self._missing(path, scorer, "HF_HUB_OFFLINE is set, so nothing was requested")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(self.url, timeout=_TIMEOUT) as source, part.open("wb") as file:
                while block := source.read(_CHUNK):
                    file.write(block)
                    digest.update(block)
        except OSError as error:
            part.unlink(missing_ok=True)
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise self._missing(path, scorer, f"the download failed ({reason})") from error
        if not digest.hexdigest().startswith(start):
            part.unlink()
            raise self._missing(path, scorer, f"the server sent a file of SHA-256 {digest.hexdigest()[:8]}, not {start}")
        part.replace(path)

    def _missing(self, path: Path, scorer: str, reason: str) -> WeightsUnavailableError:
        return WeightsUnavailableError(
            f"scorer {scorer}: the official weights {path.name} are not in {path.parent}, and {reason}. "
            f"Download {self.url} on a machine with a network and put the file there (TORCH_HOME moves that folder), "
            f"or choose a scorer that needs no download: {self.instead}."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def resized(pictures: Tensor, side: int) -> Tensor:
    """Stretch uint8 `(b, 3, h, w)` to `(b, 3, side, side)` float32 in [-1, 1]: bicubic with antialias, clamped to 0..255."""
    x = pictures.float()
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return x / 127.5 - 1


class _OnDevice:
    """A frozen network: one copy for each device that asks, and the results of the last two batches.

    Several scorers ask for the features of one batch, and every rate asks for those of the same originals: they pay once. A batch
    is known by the identity of its tensor, so it must not be changed in place (a change is seen, except in inference mode).
    """

    def __init__(self, network: nn.Module) -> None:
        self._copies: dict[torch.device, nn.Module] = {torch.device("cpu"): network}
        self._recent: deque[tuple[Tensor, int, Any]] = deque(maxlen=2)

    def on(self, device: torch.device) -> nn.Module:
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self._copies[torch.device("cpu")]).to(device)
        return self._copies[device]

    def _once(self, pictures: Tensor) -> Any:
        version = 0 if pictures.is_inference() else pictures._version
        for i, entry in enumerate(self._recent):
            if entry[0] is pictures and entry[1] == version:
                del self._recent[i]  # not remove(entry): it would compare tensors
                self._recent.append(entry)
                return entry[2]
        with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):
            result = self._look(pictures)
        self._recent.append((pictures, version, result))
        return result

    def _look(self, pictures: Tensor) -> Any:
        """Run the network on uint8 pictures `(b, 3, h, w)`."""
        raise NotImplementedError


class PictureFeatures(_OnDevice):
    """A network of `zoo.layers.features` on 8-bit pictures: maps of five stages and pooled features."""

    def __init__(self, name: str, side: int) -> None:
        network = load_features(name)
        super().__init__(network)
        self.side = side
        self.sha256 = network.sha256
        self.dimensions = network.pooled

    @classmethod
    def shared(cls, record: ScorerRecord, networks: Networks) -> "PictureFeatures":
        """Give the network of a record, from `networks` if it is there."""
        key = (record.protocol["network"], record.protocol["input_side"])
        if key not in networks:
            networks[key] = cls(*key)
        return networks[key]

    def _look(self, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.on(pictures.device)(resized(pictures, self.side))

    def __call__(self, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        """Give the maps, fine to coarse, and pooled features `(b, d)` float32 of uint8 pictures `(b, 3, h, w)`."""
        return self._once(pictures)

    def pooled(self, pictures: Tensor) -> Tensor:
        """Give pooled features `(b, d)`."""
        return self._once(pictures)[1]


class InceptionFeatures(_OnDevice):
    """The network of FID, as package torch-fidelity has it, with its own resize: uint8 `(b, 3, h, w)` to `(b, 2048)`.

    Raises:
        ModuleNotFoundError: package torch-fidelity is not installed.
        WeightsUnavailableError: the weights are not to be had.
    """

    dimensions = 2048
    outputs: tuple[str, ...] = ("2048",)
    weights = PublishedWeights(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "kid_mbv2, pfd64_mbv2",
    )

    def __init__(self, scorer: str = "rfid") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"scorer {scorer}: package torch-fidelity is not installed. Install it: pip install 'tokenizer-zoo[eval]'."
            ) from error
        path, self.sha256 = self.weights.path(scorer)
        torch.load(path, map_location="cpu", weights_only=True)  # the package reads the file as a pickle: refuse code in it first
        outputs = list(self.outputs)
        super().__init__(FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=str(path)))

    def _look(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return self.on(pictures.device)(pictures)

    def pooled(self, pictures: Tensor) -> Tensor:
        """Give pooled features `(b, 2048)` float32."""
        return self._once(pictures)[0]


class LPIPSNetwork(_OnDevice):
    """The distance of package lpips, version 0.1: heads from the package, trunk from torchvision's published weights.

    Args:
        trunk: "alex" or "vgg".
        scorer: who asks, for messages.

    Raises:
        ModuleNotFoundError: package lpips is not installed.
        WeightsUnavailableError: the weights are not to be had.
    """

    weights = {
        "alex": PublishedWeights("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "pdist_mbv2"),
        "vgg": PublishedWeights("https://download.pytorch.org/models/vgg16-397923af.pth", "pdist_mbv2"),
    }

    def __init__(self, trunk: str, *, scorer: str = "lpips") -> None:
        try:
            import lpips
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"scorer {scorer}: package lpips is not installed. Install it: pip install 'tokenizer-zoo[eval]'."
            ) from error
        path, self.sha256 = self.weights[trunk].path(scorer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pretrained.*", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*weight enum.*", category=UserWarning)
            network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
        _fill_trunk(network.net, torch.load(path, map_location="cpu", weights_only=True))
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{trunk}.pth"
        self.heads_sha256 = _sha256(heads)
        super().__init__(network.eval().requires_grad_(False))

    @torch.no_grad()
    def __call__(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Give the distance of uint8 pictures `(b, 3, h, w)`, `(b,)` float32."""
        a, b = (pictures.float() / 127.5 - 1 for pictures in (reference, reconstruction))
        with torch.autocast(reference.device.type, enabled=False):
            return self.on(reference.device)(a, b).flatten(1)[:, 0]


def _fill_trunk(trunk: nn.Module, state: dict[str, Tensor]) -> None:
    """Put torchvision's `features.<i>.*` into the package's slices, whose layers keep the number i."""
    own = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    names = {key: key.partition(".")[2] for key in trunk.state_dict()}
    if sorted(names.values()) != sorted(own):
        raise ValueError(f"LPIPSNetwork: the file holds {len(own)} feature tensors, the network {len(names)}. Is it another one?")
    trunk.load_state_dict({key: own[name] for key, name in names.items()})
