"""How items reach a tokenizer and a scorer, as versioned values: two numbers are compared only where their protocols are equal.

    image-64-v1                       the zoo's own rule (Pillow, antialiased bicubic, centre), 64 px
    image-256-v1, image-256x192-v1    the same for other sizes (height x width)
    image-256-adm-v1                  halving with a box filter, then bicubic, centre: ADM and what follows it
    image-256-torchvision-bilinear-v1, image-256-torchvision-bicubic-v1    Resize(256), CenterCrop(256) of torchvision
    video-128-v1, video-256x192-v1    whole clips at their own frame rate, each frame by the zoo's own rule
    audio-16k-v1, audio-24k-v1        mono recordings at 16,000 or 24,000 samples a second, whole

A protocol never changes: a better rule gets a new version. `Protocol.varied` changes a field and says so in the id.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from PIL import Image

from eval.resampling import RESAMPLE_RULE

__all__ = [
    "RULES",
    "AnyProtocol",
    "Protocol",
    "SoundProtocol",
    "VideoProtocol",
    "default_protocol",
    "default_sound_protocol",
    "default_video_protocol",
    "get_protocol",
    "noise_seed",
    "prepare",
    "read_protocol",
]

_NOISE = "one seed per item: the first 8 bytes of SHA-256 of SEED/NUMBER, without the sign bit"
_INTERVAL = "percentile bootstrap over items, 1000 resamples, 95 %"


class _Fixed:
    """What the protocols of all modalities share: plain values, a fingerprint of all fields, and ids that tell of changes.

    A subclass is a frozen dataclass with the fields `id`, `decode`, `scorers` and `seed`.
    """

    id: str
    seed: int
    decode: Mapping[str, Any]
    scorers: Mapping[str, Mapping[str, Any]]

    def _check(self) -> None:
        name = f"{type(self).__name__} {self.id}"
        wrong = [key for key, value in self.decode.items() if not isinstance(value, str | int | float | bool | None)]
        if wrong:
            raise ValueError(f"{name}: decode option {wrong[0]}={self.decode[wrong[0]]!r}. Allowed: plain values.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"{name}: seed={self.seed}. Allowed: 0..{2**31 - 1}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the fingerprint, for a result file."""
        return {**self._plain(), "fingerprint": self.fingerprint}

    def _plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # a dataclass
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        scorers = {name: dict(definition) for name, definition in self.scorers.items()}
        return {**values, "decode": dict(self.decode), "scorers": scorers}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all fields: any change of any of them changes it."""
        text = json.dumps(self._plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave.

        Raises:
            ValueError: an unknown or missing key, a value that is not allowed, or a fingerprint that does not fit the fields.
        """
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # a dataclass
        unknown = sorted(values.keys() - known - {"fingerprint"})
        missing = sorted({*known, "fingerprint"} - values.keys())
        name = cls.__name__
        if unknown or missing:
            raise ValueError(f"{name}: unknown keys {unknown}, missing keys {missing}. Needed: {sorted(known)} and fingerprint.")
        protocol = cls(**{key: tuple(value) if isinstance(value := values[key], list) else value for key in known})
        if protocol.fingerprint != values["fingerprint"]:
            raise ValueError(
                f"{name} {protocol.id}: fingerprint {str(values['fingerprint'])[:12]} does not fit the fields "
                f"({protocol.fingerprint[:12]}). They were edited by hand: measure again."
            )
        return protocol

    def varied(self, **changes: Any) -> Self:
        """Change fields; those that make numbers another quantity are written into the id, such as `image-64-v1+seed=1`.

        Raises:
            ValueError: no such field, or `id` itself.
        """
        known = [f.name for f in fields(self) if f.name != "id"]  # type: ignore[arg-type]  # a dataclass
        wrong = [key for key in changes if key not in known]
        if wrong:
            raise ValueError(
                f"{type(self).__name__}.varied: {wrong[0]!r} is no field that can be changed. Allowed: {', '.join(known)}."
            )
        told = {key: value for key, value in changes.items() if key not in ("decode", "scorers") and value != getattr(self, key)}
        name = self.id + "".join(f"+{key}={_word(value)}" for key, value in sorted(told.items()))
        return replace(self, id=name, **changes)  # type: ignore[type-var]  # a dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol(_Fixed):
    """Everything that fixes a number on pictures beside the tokenizer and the data.

    Attributes:
        id: name with version; equal ids mean equal rules.
        modality: of the items.
        size: `(h, w)` after the crop.
        resize: filter and library.
        crop: what is cut.
        signal: how 8-bit values reach the tokenizer.
        to_uint8: how a reconstruction becomes 8 bits before scoring.
        reference: what it is compared with.
        encode: the encoder's mode, not a sample.
        dtype: of the tokenizer.
        seed: of decoders that draw noise and of the bootstrap.
        noise: how a decoder's noise follows from the seed: each item of the data set has its own (`noise_seed`), so that its result
            does not depend on the batch, and items do not share noise.
        interval: how confidence intervals are made.
        decode: options of the decoder, such as steps and guidance. They belong to the tokenizer: rows with other options may be
            compared.
        scorers: name -> definition of each scorer used, with the SHA-256 of its network.
    """

    id: str
    modality: Literal["image"] = "image"
    size: tuple[int, int]
    resize: str = "pil-bicubic-antialias"
    crop: str = "center"
    signal: str = "v / 127.5 - 1, float"
    to_uint8: Literal["round", "truncate"] = "round"
    reference: str = "cropped originals, 8 bits"
    encode: str = "mode"
    dtype: str = "float32"
    seed: int = 0
    noise: str = _NOISE
    interval: str = _INTERVAL
    decode: Mapping[str, Any] = field(default_factory=dict)
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resize not in RULES:
            raise ValueError(f"Protocol {self.id}: resize={self.resize!r}. Allowed: {', '.join(RULES)}.")
        if self.to_uint8 not in ("round", "truncate"):
            raise ValueError(f"Protocol {self.id}: to_uint8={self.to_uint8!r}. Allowed: round, truncate.")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"Protocol {self.id}: size={self.size}. Needed: (height, width), each at least 1.")
        if RULES[self.resize].square and self.size[0] != self.size[1]:
            raise ValueError(f"Protocol {self.id}: size={self.size}, but {self.resize} is defined for squares.")
        self._check()


@dataclass(frozen=True, kw_only=True)
class SoundProtocol(_Fixed):
    """Everything that fixes a number on sound beside the tokenizer and the data.

    Attributes:
        id: name with version; equal ids mean equal rules.
        modality: of the items.
        sample_rate: samples a second at which original and reconstruction are compared.
        channels: what is done with recordings, and tokenizers, of more than one.
        resample: of the recording to `sample_rate`, from there to the tokenizer's rate, and back.
        signal: how values reach the tokenizer.
        to_pcm: how both sides become what a sound file holds before scoring.
        length: of the items and of their reconstructions.
        alignment: of the two sides in time.
        encode: the encoder's mode, not a sample.
        dtype: of the tokenizer.
        seed: of decoders that draw noise and of the bootstrap.
        noise: how a decoder's noise follows from the seed.
        interval: how confidence intervals are made.
        decode: options of the decoder, or what a classical codec is and was told. Rows with other options may be compared.
        scorers: name -> definition of each scorer used, with the SHA-256 of its network.
    """

    id: str
    modality: Literal["audio"] = "audio"
    sample_rate: int
    channels: str = "mean of the recording's; a tokenizer of more gets copies, and their mean is scored"
    resample: str = RESAMPLE_RULE
    signal: str = "[-1, 1], float"
    to_pcm: str = "clamped to [-1, 1], rounded to 16 bits"
    length: str = "whole recordings; reconstructions have exactly their length"
    alignment: str = "none"
    encode: str = "mode"
    dtype: str = "float32"
    seed: int = 0
    noise: str = _NOISE
    interval: str = _INTERVAL
    decode: Mapping[str, Any] = field(default_factory=dict)
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"SoundProtocol {self.id}: sample_rate={self.sample_rate}. Allowed: at least 1.")
        self._check()


@dataclass(frozen=True, kw_only=True)
class VideoProtocol(_Fixed):
    """Everything that fixes a number on clips beside the tokenizer and the data.

    Attributes:
        id: name with version; equal ids mean equal rules.
        modality: of the items.
        size: `(h, w)` of the frames after the crop.
        resize: filter and library.
        crop: what is cut.
        frames: only the first so many of each clip; None for all.
        frame_rate: of the clips; no frame is left out or repeated.
        length: of the reconstructions.
        pictures: how a tokenizer of pictures is applied.
        signal: how 8-bit values reach the tokenizer.
        to_uint8: how a reconstruction becomes 8 bits before scoring.
        reference: what it is compared with.
        encode: the encoder's mode, not a sample.
        dtype: of the tokenizer.
        seed: of decoders that draw noise and of the bootstrap.
        noise: how a decoder's noise follows from the seed.
        interval: how confidence intervals are made.
        decode: options of the decoder, or what a classical codec is and was told. Rows with other options may be compared.
        scorers: name -> definition of each scorer used, with the SHA-256 of its network.
    """

    id: str
    modality: Literal["video"] = "video"
    size: tuple[int, int]
    resize: str = "pil-bicubic-antialias"
    crop: str = "center"
    frames: int | None = None
    frame_rate: str = "of the file"
    length: str = "reconstructions have exactly the frames of the original"
    pictures: str = "a tokenizer of pictures sees each frame alone"
    signal: str = "v / 127.5 - 1, float"
    to_uint8: Literal["round", "truncate"] = "round"
    reference: str = "cropped originals, 8 bits, frames as PyAV decodes them to RGB"
    encode: str = "mode"
    dtype: str = "float32"
    seed: int = 0
    noise: str = f"{_NOISE}; a tokenizer of pictures uses that of the clip for each of its frames"
    interval: str = _INTERVAL
    decode: Mapping[str, Any] = field(default_factory=dict)
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"VideoProtocol {self.id}"
        if self.resize != "pil-bicubic-antialias":
            raise ValueError(f"{name}: resize={self.resize!r}. Allowed: pil-bicubic-antialias.")
        if self.to_uint8 not in ("round", "truncate"):
            raise ValueError(f"{name}: to_uint8={self.to_uint8!r}. Allowed: round, truncate.")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"{name}: size={self.size}. Needed: (height, width), each at least 1.")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"{name}: frames={self.frames}. Allowed: at least 1, or None for all.")
        self._check()


AnyProtocol = Protocol | SoundProtocol | VideoProtocol


def read_protocol(values: Mapping[str, Any]) -> AnyProtocol:
    """Read what `to_dict` of a protocol of any modality gave.

    Raises:
        ValueError: another modality, or as `Protocol.from_dict`.
    """
    kinds: dict[Any, type[Protocol] | type[SoundProtocol] | type[VideoProtocol]] = {
        "image": Protocol,
        "video": VideoProtocol,
        "audio": SoundProtocol,
    }
    kind = kinds.get(values.get("modality"))
    if kind is None:
        raise ValueError(f"read_protocol: modality {values.get('modality')!r}. Allowed: {', '.join(kinds)}.")
    return kind.from_dict(values)


def _word(value: Any) -> str:
    text = "x".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


# -- rules for resize and crop ---------------------------------------------------------------------------------------


def _zoo(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from zoo.media import resize_crop

    return resize_crop(image, size)


def _adm(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Halve with a box filter while the short side is at least twice the size; bicubic to the size; cut the centre."""
    side = size[0]
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _torchvision(filter_name: str) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    def rule(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        resized = F.resize(image, [min(size)], interpolation=InterpolationMode(filter_name))
        return F.center_crop(resized, list(size))

    return rule


@dataclass(frozen=True)
class Rule:
    """A way to bring a picture to a size.

    Attributes:
        apply: RGB picture and `(h, w)` to the RGB picture of that size.
        square: only defined for squares.
        what: in words.
    """

    apply: Callable[[Image.Image, tuple[int, int]], Image.Image]
    square: bool
    what: str


RULES: dict[str, Rule] = {
    "pil-bicubic-antialias": Rule(_zoo, False, "Pillow: the largest centred box of the aspect, by antialiased bicubic to the size"),
    "adm-box-bicubic": Rule(_adm, True, "Pillow: halved by box filter, then bicubic, centre crop"),
    "torchvision-bilinear": Rule(_torchvision("bilinear"), True, "torchvision Resize (bilinear on PIL) and CenterCrop"),
    "torchvision-bicubic": Rule(_torchvision("bicubic"), True, "torchvision Resize (bicubic on PIL) and CenterCrop"),
}
_VARIANTS = {
    "": "pil-bicubic-antialias",
    "adm": "adm-box-bicubic",
    "torchvision-bilinear": "torchvision-bilinear",
    "torchvision-bicubic": "torchvision-bicubic",
}


_SOUND_RATES = {"audio-16k-v1": 16000, "audio-24k-v1": 24000}


def prepare(protocol: Protocol, image: Image.Image) -> Image.Image:
    """Bring an RGB picture to the protocol's size by its rule."""
    return RULES[protocol.resize].apply(image, protocol.size)


def noise_seed(seed: int, number: int) -> int:
    """Seed of the noise of item `number`, in 0..2^63 - 1.

    Hashed, because torch's CPU generator looks at the lower 32 bits of a seed only: numbers side by side would collide.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1


def get_protocol(name: str) -> Any:
    """Give a protocol by its id: a `Protocol` for pictures, a `VideoProtocol` for `video-...`, a `SoundProtocol` for `audio-...`.

    Raises:
        ValueError: no such id, with near matches.
    """
    if name in _SOUND_RATES:
        return SoundProtocol(id=name, sample_rate=_SOUND_RATES[name])
    clips = re.fullmatch(r"video-([1-9]\d*)(?:x([1-9]\d*))?-v1", name)
    if clips is not None:
        return VideoProtocol(id=name, size=(int(clips[1]), int(clips[2] or clips[1])))
    match = re.fullmatch(r"image-([1-9]\d*)(?:x([1-9]\d*))?(?:-([a-z-]+))?-v1", name)
    variant = (match[3] or "") if match else None
    if match is None or variant not in _VARIANTS:
        examples = [f"image-{n}{'-' * bool(v)}{v}-v1" for n in (32, 64, 128, 256, 512) for v in _VARIANTS] + [*_SOUND_RATES]
        examples += [f"video-{n}-v1" for n in (64, 128, 256)]
        near = ", ".join(difflib.get_close_matches(name, examples, n=3, cutoff=0.3))
        forms = ", ".join(f"image-SIZE{'-' * bool(v)}{v}-v1" for v in _VARIANTS)
        raise ValueError(
            f"get_protocol: there is no protocol {name!r}. Closest: {near}. Forms: {forms}, video-SIZE-v1; SIZE is 256 or "
            f"256x192; "
            f"{', '.join(_SOUND_RATES)}."
        )
    height = int(match[1])
    return Protocol(id=name, size=(height, int(match[2] or height)), resize=_VARIANTS[variant])


def default_sound_protocol(name: str, sample_rate: int | None) -> SoundProtocol:
    """Give the protocol of the highest rate that a tokenizer of sound does not exceed: 24 kHz for 44.1 kHz, 16 kHz for 16 kHz.

    Raises:
        ValueError: the tokenizer's rate is unknown or below 16 kHz.
    """
    fitting = [key for key, rate in _SOUND_RATES.items() if sample_rate is not None and rate <= sample_rate]
    if not fitting:
        raise ValueError(
            f"default_sound_protocol: {name} has sample rate {sample_rate}. Choose a protocol: {', '.join(_SOUND_RATES)}."
        )
    return get_protocol(fitting[-1])


def default_video_protocol(name: str, native_size: tuple[int, int] | None) -> VideoProtocol:
    """Give the protocol of clips at a tokenizer's native size.

    Raises:
        ValueError: the tokenizer has no native size.
    """
    if native_size is None:
        raise ValueError(f"default_video_protocol: {name} has no native size. Choose a protocol, such as video-128-v1.")
    height, width = native_size
    return get_protocol(f"video-{height}-v1" if height == width else f"video-{height}x{width}-v1")


def default_protocol(name: str, native_size: tuple[int, int] | None) -> Protocol:
    """Give the zoo's own protocol at a tokenizer's native size.

    Raises:
        ValueError: the tokenizer has no native size.
    """
    if native_size is None:
        raise ValueError(f"default_protocol: {name} has no native size. Choose a protocol, such as image-256-v1.")
    height, width = native_size
    return get_protocol(f"image-{height}-v1" if height == width else f"image-{height}x{width}-v1")
