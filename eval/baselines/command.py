"""Measure a classical codec on the items and by the scorers of a protocol; `zoo eval baseline CODEC` runs `main`."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.baselines.pictures import PICTURE_CODECS, PictureCodec
from eval.baselines.sounds import SOUND_CODECS, SoundCodec
from eval.baselines.video import VIDEO_CODECS, VideoCodec
from eval.clips import Clips
from eval.protocols import AnyProtocol, get_protocol
from eval.reconstruction import data_name, dataset_of, item_rows, open_corpus, show
from eval.results import Result, Speed, environment
from eval.runner import batches, device_name
from eval.scorers import DEFAULT_AUDIO, DEFAULT_IMAGE, DEFAULT_VIDEO, RECORDS, check_names
from eval.sound_runner import sound_batches
from eval.sounds import Sounds, pcm16
from eval.video_runner import clip_batches

__all__ = ["evaluate_codec", "main"]

_BATCH = 8
_CODES = ("codebook_use", "code_perplexity", "entropy_bits_per_second", "tokens_per_second")
_UNITS = {"image": "quality", "video": "crf", "audio": "kbps"}
_DEFAULTS = {"image": DEFAULT_IMAGE, "video": DEFAULT_VIDEO, "audio": DEFAULT_AUDIO}
_PROTOCOLS = {"image": "image-64-v1", "video": "video-128-v1", "audio": "audio-16k-v1"}


def _codec(name: str) -> PictureCodec | VideoCodec | SoundCodec:
    codecs: dict[str, Any] = {**PICTURE_CODECS, **VIDEO_CODECS, **SOUND_CODECS}
    if name not in codecs:
        raise ValueError(f"baseline: there is no codec {name!r}. Allowed: {', '.join(codecs)}.")
    return codecs[name]


def _modality(codec: PictureCodec | VideoCodec | SoundCodec) -> str:
    return "image" if isinstance(codec, PictureCodec) else "video" if isinstance(codec, VideoCodec) else "audio"


def evaluate_codec(
    name: str,
    corpus: Any,
    *,
    protocol: AnyProtocol | str,
    rates: Sequence[int] | None = None,
    scorers: Sequence[str] | None = None,
    limit: int | None = None,
    dataset_name: str | None = None,
    split: str | None = None,
) -> Result:
    """Measure a classical codec as a tokenizer is measured: same items, same preparation, same scorers.

    Args:
        name: `jpeg`, `webp`, `avif`, `jpegxl`, `h264`, `av1`, `opus`, `opus_music` or `mp3`.
        corpus: pictures, clips or recordings.
        protocol: or its id, such as `image-64-v1`, `video-128-v1` or `audio-16k-v1`; `decode` in it will say what the encoder
            is and was told.
        rates: qualities (pictures), constant rate factors (clips), or kbit/s asked for (sound); the bits in the result are those
            that were really used.
        scorers: names; None takes the default ones of the modality that so many items allow.
        limit: only the first so many items.
        dataset_name: for people and file names.
        split: of the source, as it was opened.

    Returns:
        A measured result, without a hash of weights, with the scores of every item.

    Raises:
        ValueError: no such codec, another modality's protocol, an unknown scorer, or a rate that the codec does not take.
        ModuleNotFoundError: a package is missing.
    """
    from eval.measure import PointMeter

    codec = _codec(name)
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    modality = _modality(codec)
    if protocol.modality != modality:
        raise ValueError(f"baseline {name}: protocol {protocol.id} is for {protocol.modality}. Choose one of the codec's kind.")
    corpus, dataset = dataset_of(corpus, limit, dataset_name, split)
    names = check_names(_defaults(protocol, dataset.count) if scorers is None else scorers)
    unfit = [key for key in names if key in _CODES or not RECORDS[key].fits(modality)]
    if unfit:
        raise ValueError(f"baseline {name}: scorer {unfit[0]} cannot be used on a codec of {protocol.modality}. Leave it out.")
    steps = sorted({int(rate) for rate in (codec.ladder if rates is None else rates)}, reverse=modality == "video")  # rising bits
    networks: dict[tuple[str, int], Any] = {}
    meters = [PointMeter({_UNITS[modality]: step}, names, networks=networks, sound=modality == "audio") for step in steps]
    facts = codec.facts(protocol.sample_rate) if isinstance(codec, SoundCodec) else codec.facts()
    protocol = replace(protocol, decode=facts, scorers=meters[0].definitions)
    seconds, items = 0.0, 0
    read: Callable[..., Any] = {"image": batches, "video": clip_batches, "audio": sound_batches}[modality]
    code: Callable[..., Any] = {"image": _code_pictures, "video": _code_clips, "audio": _code_sounds}[modality]
    for batch in read(corpus, protocol, range(dataset.count), 1 if modality == "video" else _BATCH, 0):
        for meter, step in zip(meters, steps, strict=True):
            start = time.perf_counter()
            coded, amounts = code(codec, batch.items, step)
            seconds += time.perf_counter() - start
            items += len(batch.index)
            meter.update(batch.items, coded, index=batch.index, failed=batch.unreadable, rates=amounts)
    each = items / max(seconds, 1e-9)
    speed = Speed(
        encode_items_per_s=each,
        decode_items_per_s=each,
        device=f"{device_name(torch.device('cpu'))}, encoding and decoding together",
        dtype="int16" if modality == "audio" else "uint8",
        batch=1,
        threads=1,
    )
    return Result(
        tokenizer=name,
        dataset=dataset,
        protocol=protocol,
        points=tuple(meter.point(seed=protocol.seed) for meter in meters),
        speed=speed,
        environment=environment(),
        items=tuple(item_rows(meters, corpus)),
    )


def _defaults(protocol: Any, count: int) -> list[str]:
    """Default scorers that need no codes and that the protocol and so many items allow."""
    return [name for name in _DEFAULTS[protocol.modality] if name not in _CODES and count >= RECORDS[name].min_items]


def _code_pictures(codec: Any, pictures: Tensor, quality: int) -> tuple[Tensor, Tensor]:
    """Code a batch, uint8 `(b, 3, h, w)`; gives it and the bits per pixel `(b,)`."""
    arrays = [codec.code(picture.permute(1, 2, 0).contiguous().numpy(), quality) for picture in pictures]
    out = torch.from_numpy(np.stack([array for array, _ in arrays])).permute(0, 3, 1, 2).contiguous()
    pixels = pictures.shape[2] * pictures.shape[3]
    return out, torch.tensor([bits / pixels for _, bits in arrays], dtype=torch.float64)


def _code_clips(codec: Any, clips: Clips, crf: int) -> tuple[Clips, Tensor]:
    """Code a batch; gives it and the bits per pixel `(b,)`."""
    pairs = zip(clips.frames, clips.frame_rates, strict=True)
    coded = [codec.code(frames.permute(0, 2, 3, 1).contiguous().numpy(), rate, crf) for frames, rate in pairs]
    out = [torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() for frames, _ in coded]
    amounts = [bits / (len(frames) * frames.shape[2] * frames.shape[3]) for (_, bits), frames in zip(coded, out, strict=True)]
    return Clips(out, clips.frame_rates), torch.tensor(amounts, dtype=torch.float64)


def _code_sounds(codec: Any, sounds: Sounds, kbps: int) -> tuple[Sounds, Tensor]:
    """Code a batch; gives it and the bits per second `(b,)`."""
    coded = [codec.code(wave, sounds.sample_rate, kbps) for wave in sounds.waves]
    rates = [bits * sounds.sample_rate / len(wave) for (_, bits), wave in zip(coded, sounds.waves, strict=True)]
    return Sounds([pcm16(wave) for wave, _ in coded], sounds.sample_rate), torch.tensor(rates, dtype=torch.float64)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo eval baseline", description=__doc__)
    add = parser.add_argument
    add("codec", choices=[*PICTURE_CODECS, *VIDEO_CODECS, *SOUND_CODECS], help="what to measure")
    add("--data", required=True, help="as for zoo eval")
    add("--split", help="of a folder of shards; speech or music of the samples")
    add("--protocol", help="default: image-64-v1 for pictures, video-128-v1 for clips, audio-16k-v1 for sound")
    add("--rates", help="such as 6,9,12,16 (kbit/s), 10,50,90 (quality) or 23,33 (crf); default: the codec's ladder")
    add("--scorers", help="names with commas; default: those of the modality")
    add("--limit", type=int, help="only the first so many items; the result says so")
    add("--dataset-name", help="in the result and its file name; default: from --data")
    add("--out", type=Path, help="default: eval/results/<codec>/<dataset>.<protocol>.json")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `zoo eval baseline`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_corpus` and `evaluate_codec`; nothing is written then.
    """
    args = _parser().parse_args(argv)
    modality = _modality(_codec(args.codec))
    if args.rates is not None and not all(part.strip().isdecimal() for part in args.rates.split(",")):
        raise ValueError(f"zoo eval baseline: --rates {args.rates!r}. Give whole numbers with commas, such as 6,9,12.")
    result = evaluate_codec(
        args.codec,
        open_corpus(args.data, args.split, modality),
        protocol=args.protocol or _PROTOCOLS[modality],
        rates=None if args.rates is None else [int(part) for part in args.rates.split(",")],
        scorers=None if args.scorers is None else [part.strip() for part in args.scorers.split(",")],
        limit=args.limit,
        dataset_name=args.dataset_name or data_name(args.data),
        split=args.split,
    )
    name = result.dataset.name + (f"-first{result.dataset.limit}" if result.dataset.limit else "")
    out = args.out or Path("eval") / "results" / args.codec / f"{name}.{result.protocol.id}.json"
    result.save(out)
    show(result, out)
    return 0
