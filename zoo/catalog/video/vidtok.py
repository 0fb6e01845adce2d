"""VidTok: the causal and non-causal models of release 1.0, and the causal ones of 1.1, which were tuned on long videos.

The names are the release's: KL or FSQ, causal or not, the compression in time, height and width, channels or codebook size. The
configuration of two models of 1.1 (`kl_causal_488_4chn`, `fsq_causal_41616_262144`) is published, but the table of released files
does not list them.
"""

import re
from typing import Any

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

# What a model of each compression differs in from the default configuration, by release 1.0 names.
_SIZES: dict[str, dict[str, Any]] = {
    "488": {},
    "288": dict(time_down=(1,), time_up=(2,)),
    "444": dict(space_down=(1, 2), space_up=(1, 2)),
    "888": dict(time_down=(0, 1, 2), time_up=(1, 2, 3)),
    "41616": dict(multipliers=(1, 2, 4, 4, 4), space_down=(0, 1, 2, 3), time_down=(2, 3), space_up=(1, 2, 3, 4)),
}
_DOWNSAMPLE = {"488": (4, 8, 8), "288": (2, 8, 8), "444": (4, 4, 4), "888": (8, 8, 8), "41616": (4, 16, 16)}
_PARAMETERS = {
    "vidtok_kl_causal_488_4chn": 157_451_663,
    "vidtok_kl_causal_488_8chn": 157_617_559,
    "vidtok_kl_causal_488_16chn": 157_949_351,
    "vidtok_kl_causal_288_8chn": 148_769_429,
    "vidtok_kl_causal_444_4chn": 154_944_271,
    "vidtok_kl_causal_41616_4chn": 198_967_951,
    "vidtok_kl_noncausal_488_4chn": 157_451_663,
    "vidtok_kl_noncausal_488_16chn": 157_949_351,
    "vidtok_kl_noncausal_41616_4chn": 198_967_951,
    "vidtok_kl_noncausal_41616_16chn": 199_465_639,
    "vidtok_fsq_causal_488_4096": 157_396_363,
    "vidtok_fsq_causal_488_32768": 157_424_012,
    "vidtok_fsq_causal_488_262144": 157_451_661,
    "vidtok_fsq_causal_41616_262144": 198_967_949,
    "vidtok_fsq_noncausal_488_262144": 157_451_661,
    "vidtok_fsq_noncausal_41616_262144": 198_967_949,
    "vidtok_kl_causal_288_8chn_v1_1": 148_769_429,
    "vidtok_kl_causal_488_4chn_v1_1": 157_451_663,
    "vidtok_kl_causal_488_16chn_v1_1": 157_949_351,
    "vidtok_kl_causal_41616_16chn_v1_1": 199_465_639,
    "vidtok_fsq_causal_488_32768_v1_1": 157_424_012,
    "vidtok_fsq_causal_888_32768_v1_1": 164_944_910,
    "vidtok_fsq_causal_41616_262144_v1_1": 198_967_949,
}


def _entry(name: str, parameters: int) -> Entry:
    """The entry of one release; everything follows from its name."""
    match = re.fullmatch(r"vidtok_(kl|fsq)_(causal|noncausal)_(\d+)_(\d+)(?:chn)?(_v1_1)?", name)
    assert match is not None
    kind, causal, compression, size, later = match[1], match[2] == "causal", match[3], int(match[4]), match[5] is not None
    downsample = _DOWNSAMPLE[compression]
    channels = size if kind == "kl" else {8**n: n for n in (4, 5, 6)}[size]
    config = dict(_SIZES[compression], latent_channels=channels, causal=causal)
    if kind == "fsq":
        config["levels"] = (8,) * channels
    if later:
        config |= dict(padding="repeat", interpolation="linear")
    what = f"{size:,} codes" if kind == "fsq" else f"{size} channels"
    look = ("causal encoder, decoder with lookahead" if later else "causal") if causal else "not causal"
    return Entry(
        name=name,
        family="vidtok",
        modality="video",
        summary=f"VidTok {'1.1' if later else '1.0'}, {' x '.join(map(str, downsample))} compression, {what}, {look}.",
        config=config,
        weights=Weights(
            repo="microsoft/VidTok",
            file=f"checkpoints/{'vidtok_v1_1/' if later else ''}{name}.ckpt",
            layout="public",
            config_file=None,
            pickle=True,
            key="state_dict",
        ),
        layout="3d",
        discrete=kind == "fsq",
        channels=channels if kind == "kl" else None,
        codebook_size=size if kind == "fsq" else None,
        vocabulary=(size,) if kind == "fsq" else (),
        native_size=(256, 256),
        downsample=downsample,
        size_multiple=downsample[1],
        causal=causal and not later,
        streaming=causal,
        lookahead_frames=(downsample[0] - 1 if later else 0) if causal else None,
        stochastic_encode=kind == "kl",
        license_code="MIT",
        license_weights="MIT",
        paper="VidTok: A Versatile and Open-Source Video Tokenizer, arXiv 2412.13061",
        source="microsoft/VidTok@d6ad92d9",
        parameters=parameters,
        recipe=name if name == "vidtok_fsq_causal_488_32768" else None,
    )


_NANO = Entry(
    name="causal_video_fsq_nano",
    family="vidtok",
    modality="video",
    summary="Small causal VidTok at 64 px for a laptop-class CPU: 64 codes a picture and for every four later frames, any length.",
    config=dict(latent_channels=4, levels=(8, 8, 8, 8), width=16, multipliers=(1, 2, 3, 4), blocks=1, image_size=64),
    layout="3d",
    discrete=True,
    codebook_size=4096,
    vocabulary=(4096,),
    native_size=(64, 64),
    downsample=(4, 8, 8),
    size_multiple=8,
    causal=True,
    streaming=True,
    lookahead_frames=0,
    license_code="Apache-2.0",
    paper="VidTok: A Versatile and Open-Source Video Tokenizer, arXiv 2412.13061",
    parameters=1_777_947,
    recipe="causal_video_fsq_nano",
)
ENTRIES: tuple[Entry, ...] = (_NANO, *(_entry(name, parameters) for name, parameters in _PARAMETERS.items()))
