"""The contract's own part, on stand-in families whose codes can be computed by hand: sizes, rates, lists, options, refusals."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.config import Config
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens
from zoo.transforms.quality import Quality, psnr_db

# -- stand-ins: one parameter each, no network -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SizeConfig(Config):
    cell: int = 4
    count: int = 6
    levels: int = 1


class Base(Tokenizer):
    Config = SizeConfig

    def __init__(self, config=None, info=None):
        super().__init__(config or self.Config(), info)
        self.one = nn.Parameter(torch.ones(()))


class Cells(Base):
    """Each cell of the picture becomes its mean, in `levels` digits of base 4, coarse to fine."""

    family = "stand_in_cells"

    @classmethod
    def layout_of(cls, config):
        return dict(
            modality="image", layout="2d", discrete=True, residual=config.levels > 1, depth=config.levels, codebook_size=4,
            vocabulary=(4,) * config.levels, downsample=(1, config.cell, config.cell), size_multiple=config.cell,
        )  # fmt: skip

    def _encode(self, x, *, tokens, depth, generator):
        cell, levels = self.config.cell, self.config.levels
        mean = nn.functional.avg_pool2d(x.mean(1, keepdim=True), cell)[:, 0] * self.one
        code = ((mean + 1) / 2 * 4**levels).floor().clamp(0, 4**levels - 1).long()
        digits = torch.stack([code // 4 ** (levels - 1 - j) % 4 for j in range(levels)], -1)
        return digits[..., :depth]

    def _decode(self, tokens, size):
        weights = torch.tensor([4.0**-j for j in range(tokens.levels)])
        mean = (tokens.data * weights).sum(-1) / 2 - 1 + 4.0 ** -(tokens.levels - 1) / 4
        grey = mean.repeat_interleave(self.config.cell, 1).repeat_interleave(self.config.cell, 2) * self.one
        return grey[:, None].expand(-1, 3, -1, -1)


class Strips(Base):
    """`count` ordered tokens: the mean of each horizontal strip; strips that are not kept come back as grey."""

    family = "stand_in_strips"
    calls = 0

    @classmethod
    def layout_of(cls, config):
        return dict(
            modality="image", layout="1d", discrete=True, ordered=True, tokens=config.count, codebook_size=256, vocabulary=(256,),
            native_size=(config.count, config.count), size_multiple=config.count, max_size=4 * config.count, stochastic_decode=True,
        )  # fmt: skip

    def _encode(self, x, *, tokens, depth, generator):
        strips = x.mean((1, 3)).unflatten(1, (self.config.count, -1)).mean(2)
        return ((strips + 1) * 127.5).round().long()[:, : tokens or self.config.count, None]

    def _decode(self, tokens, size, *, seed=0, brightness=0.0):
        type(self).calls += 1
        seeds = seed if isinstance(seed, list) else [seed] * len(tokens)
        noise = torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds])
        strips = (tokens.data[..., 0] / 127.5 - 1) * tokens.mask
        strips = nn.functional.pad(strips, (0, self.config.count - strips.shape[1]))
        rows = strips.repeat_interleave(size[0] // self.config.count, 1)[:, None, :, None]
        return (rows + 1e-3 * noise[:, None] + brightness).expand(-1, 3, -1, size[1]) * self.one


class Waves(Base):
    """Sound: `levels` residual codes of 16 for each frame of `cell` samples; a latent of the frame's mean can be sampled."""

    family = "stand_in_waves"

    @classmethod
    def layout_of(cls, config):
        return dict(
            modality="audio", layout="1d", discrete=True, residual=True, depth=config.levels, codebook_size=16,
            vocabulary=(16,) * config.levels, downsample=(config.cell, 1, 1), size_multiple=config.cell, sample_rate=100,
            audio_channels=1,
        )  # fmt: skip

    def _encode(self, x, *, tokens, depth, generator):
        frames = x[:, 0].unflatten(1, (-1, self.config.cell)).mean(-1)
        return ((frames + 1) * 7.5).round().long()[..., None].expand(-1, -1, self.config.levels)[..., :depth]

    def _decode(self, tokens, size, **anything):
        frames = tokens.data[..., 0] / 7.5 - 1
        return frames.repeat_interleave(self.config.cell, 1)[:, None] * self.one


class Latents(Base):
    """Continuous: the mean of each cell, with noise where it is sampled."""

    family = "stand_in_latents"

    @classmethod
    def layout_of(cls, config):
        return dict(
            modality="image", layout="2d", discrete=False, channels=3, downsample=(1, config.cell, config.cell),
            size_multiple=config.cell, stochastic_encode=True,
        )  # fmt: skip

    def _encode(self, x, *, tokens, depth, generator):
        mean = nn.functional.avg_pool2d(x, self.config.cell) * self.one
        if generator is not None:
            mean = mean + torch.randn(mean.shape, generator=generator)
        return mean.permute(0, 2, 3, 1)

    def _decode(self, tokens, size):
        cell = self.config.cell
        return tokens.data.permute(0, 3, 1, 2).repeat_interleave(cell, 2).repeat_interleave(cell, 3) * self.one


class Fixed(Strips):
    """The strips without an order: always all of them."""

    family = "stand_in_fixed"

    @classmethod
    def layout_of(cls, config):
        return {**super().layout_of(config), "ordered": False, "stochastic_decode": False}


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- sizes and lists ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (3, 17)])
def test_any_size_comes_back(size):
    tok = Cells()
    tokens = tok.encode(pictures(2, 3, *size))
    assert tokens.positions == tuple(math.ceil(side / 4) for side in size)
    assert tokens.extent.tolist() == [list(size)] * 2
    assert tok.decode(tokens).shape == (2, 3, *size)


def test_sides_off_the_grid_repeat_their_edge():
    x = pictures(1, 3, 5, 6)
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1)], 2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, 2)], 3)
    assert torch.equal(Cells().encode(x).data, Cells().encode(padded).data)


SIZES = [(4, 4), (9, 5), (4, 4), (1, 13), (9, 5)]


@pytest.mark.parametrize("cls", [Cells, Latents])
def test_a_list_of_unequal_pictures_equals_one_by_one(cls):
    tok = cls()
    items = [pictures(3, *size, seed=i) for i, size in enumerate(SIZES)]
    both = tok.encode(items)
    assert both.extent.tolist() == [list(size) for size in SIZES]
    y = tok.decode(both)
    assert y.shape == (5, 3, 9, 13)
    for i, (item, size) in enumerate(zip(items, SIZES, strict=True)):
        alone = tok.encode(item[None])
        assert torch.equal(both[i].data, alone.data)
        assert torch.equal(y[i, :, : size[0], : size[1]], tok.decode(alone)[0])
        assert not y[i, :, size[0] :].any()
        assert not y[i, :, :, size[1] :].any()


def test_a_list_of_unequal_sounds_equals_one_by_one():
    tok = Waves(SizeConfig(levels=2))
    items = [pictures(1, n, seed=n) for n in (9, 1, 4)]
    both = tok.encode(items)
    assert both.lengths.tolist() == [3, 1, 1]
    y = tok.decode(both)
    assert y.shape == (3, 1, 9)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert torch.equal(both[i].data, alone.data)
        assert torch.equal(y[i, :, : item.shape[1]], tok.decode(alone)[0])


def test_a_list_of_one_size_is_a_batch():
    tok, x = Cells(), pictures(3, 3, 8, 8)
    assert torch.equal(tok.encode(list(x)).data, tok.encode(x).data)
    assert tok.encode(tuple(x)).lengths is None


def test_forward_reconstructs():
    tok, x = Cells(), pictures(1, 3, 8, 8)
    assert torch.equal(tok(x), tok.decode(tok.encode(x)))


# -- rates -------------------------------------------------------------------------------------------------------------------------


def test_tokens_of_each_item():
    tok, x = Strips(), pictures(3, 3, 6, 6)
    whole = tok.encode(x)
    for ks in ([1, 6, 3], (1, 6, 3), torch.tensor([1, 6, 3]), np.array([1, 6, 3])):
        cut = tok.encode(x, tokens=ks)
        assert cut.counts.tolist() == [1, 6, 3]
        for i, k in enumerate([1, 6, 3]):
            assert torch.equal(cut[i].data, whole[i].data[:, :k])
    assert tok.encode(x, tokens=np.int64(2)).positions == (2,)
    assert tok.encode(list(x), tokens=[2, 2, 1]).counts.tolist() == [2, 2, 1]


@pytest.mark.parametrize("tokens", [0, 7, -1, 2.0, True, "2", [1, 2], [1, 2, 7], [[1, 2, 3]], [1.0, 2.0, 3.0], ["a", "b", "c"], []])
def test_tokens_that_do_not_exist_are_refused(tokens):
    for x in (pictures(3, 3, 6, 6), list(pictures(3, 3, 6, 6))):
        with pytest.raises(ValueError, match=r"stand_in_strips\.encode: tokens="):
            Strips().encode(x, tokens=tokens)


def test_a_fixed_layout_has_no_tokens_argument():
    with pytest.raises(ValueError, match=r"stand_in_cells\.encode: tokens=3.*fixed layout"):
        Cells().encode(pictures(1, 3, 4, 4), tokens=3)


def test_depth_is_a_prefix():
    tok, x = Cells(SizeConfig(levels=3)), pictures(2, 3, 8, 8)
    whole, y = tok.encode(x), tok.decode(tok.encode(x))
    for d in (1, 2, 3):
        assert torch.equal(tok.encode(x, depth=d).data, whole.depth(d).data)
        tok.decode(whole.depth(d))
    cells = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4)
    assert bool(((y[:, :1, ::4, ::4] - cells).abs() < 1 / 64).all())


@pytest.mark.parametrize("depth", [0, 4, -1, 1.5, True, "2"])
def test_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(ValueError, match=r"stand_in_cells\.encode: depth=.*1\.\.3"):
        Cells(SizeConfig(levels=3)).encode(pictures(1, 3, 4, 4), depth=depth)
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: depth=.*no residual levels"):
        Strips().encode(pictures(1, 3, 6, 6), depth=depth)


def test_bits_per_pixel_takes_the_nearest_lower_tokens():
    tok, x = Strips(), pictures(1, 3, 6, 6)  # 8 bits each, 36 pixels
    for k in range(1, 7):
        exact = 8 * k / 36
        assert tok.encode(x, bits_per_pixel=exact).positions == (k,), "a rate that is met exactly is met"
        assert tok.encode(x, bits_per_pixel=exact * 1.1).positions == (k,)
        if k > 1:
            assert tok.encode(x, bits_per_pixel=exact * 0.999).positions == (k - 1,)
    assert tok.encode(x, bits_per_pixel=100).positions == (6,)


def test_bits_per_pixel_takes_the_nearest_lower_depth():
    tok, x = Cells(SizeConfig(levels=3)), pictures(1, 3, 7, 4)  # 2 cells of 2 bits a level, 28 pixels
    for d in (1, 2, 3):
        assert tok.encode(x, bits_per_pixel=4 * d / 28).levels == d
        if d > 1:
            assert tok.encode(x, bits_per_pixel=4 * d / 28 * 0.999).levels == d - 1


def test_bits_per_pixel_of_a_list():
    tok = Strips()
    tokens = tok.encode([pictures(3, 6, 6), pictures(3, 12, 6)], bits_per_pixel=0.5)
    assert tokens.counts.tolist() == [2, 4]
    assert float(tokens.bits_per_pixel().max()) <= 0.5
    tok = Cells(SizeConfig(levels=3))
    tokens = tok.encode([pictures(3, 8, 8), pictures(3, 5, 5)], bits_per_pixel=0.33)
    assert tokens.levels == 1, "a batch has one depth, and the padded picture has room for one level only"
    assert float(tokens.bits_per_pixel().max()) <= 0.33


def test_bits_per_second():
    tok, x = Waves(SizeConfig(levels=3)), pictures(2, 1, 20)  # 25 frames of 4 bits a level in a second
    assert tok.encode(x, bits_per_second=250).levels == 2
    assert tok.encode(x, bits_per_second=100).levels == 1
    assert tok.encode(x, bits_per_second=250).bits_per_second().tolist() == [200.0, 200.0]
    with pytest.raises(ValueError, match=r"stand_in_waves\.encode: bits_per_second=99 is too little.*100"):
        tok.encode(x, bits_per_second=99)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, "0.1", True])
def test_rates_that_are_no_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: bits_per_pixel="):
        Strips().encode(pictures(1, 3, 6, 6), bits_per_pixel=rate)
    with pytest.raises(ValueError, match=r"stand_in_waves\.encode: bits_per_second="):
        Waves().encode(pictures(1, 1, 6), bits_per_second=rate)


def test_rates_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match=r"stand_in_waves\.encode: the rate of sound is given by bits_per_second"):
        Waves().encode(pictures(1, 1, 6), bits_per_pixel=1)
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: the rate of pictures is given by bits_per_pixel"):
        Strips().encode(pictures(1, 3, 6, 6), bits_per_second=1)
    with pytest.raises(ValueError, match=r"stand_in_cells\.encode: bits_per_pixel=1.*one rate only"):
        Cells().encode(pictures(1, 3, 6, 6), bits_per_pixel=1)
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: bits_per_pixel=0.01 is too little.*0\.2222"):
        Strips().encode(pictures(1, 3, 6, 6), bits_per_pixel=0.01)


TWO_RATES = [{"tokens": 2, "bits_per_pixel": 1.0}, {"tokens": 2, "quality": 20}, {"bits_per_pixel": 1, "quality": 9}]


@pytest.mark.parametrize("rates", TWO_RATES)
def test_only_one_rate_is_taken(rates):
    for x in (pictures(1, 3, 6, 6), [pictures(3, 6, 6)]):
        with pytest.raises(ValueError, match=rf"stand_in_strips\.encode: {' and '.join(rates)} are given.*only one"):
            Strips().encode(x, **rates)
    with pytest.raises(ValueError, match=r"stand_in_cells\.encode: depth=1 and bits_per_pixel=1.*only one"):
        Cells(SizeConfig(levels=3)).encode(pictures(1, 3, 4, 4), depth=1, bits_per_pixel=1)


# -- quality -----------------------------------------------------------------------------------------------------------------------


def uniform_strips(*rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None, :, None].expand(-1, 3, -1, 6)


def test_quality_gives_the_smallest_prefix():
    tok = Strips().requires_grad_(False)
    x = uniform_strips([1, 0, 0, 0, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0] * 6)
    tokens = tok.encode(x, quality=25)
    wanted = []
    for i in range(3):
        scores = [float(psnr_db(x[i : i + 1], tok.decode(tok.encode(x[i : i + 1], tokens=k), seed=0))) for k in range(1, 7)]
        wanted.append(next((k for k, score in enumerate(scores, 1) if score >= 25), 6))
    assert tokens.counts.tolist() == wanted
    assert wanted[0] == 1
    assert wanted[1] > 2, "the case is no test if one token is always enough"
    listed = tok.encode(list(x), quality=25)
    assert listed.counts.tolist() == wanted


def test_quality_that_is_never_reached_keeps_all():
    assert Strips().encode(pictures(2, 3, 6, 6), quality=99).positions == (6,)


def test_quality_by_a_distance():
    goal = Quality(0.1, score=lambda x, y: (x - y).abs().mean((1, 2, 3)), higher_is_better=False)
    x = uniform_strips([1, 1, 1, 0, 0, 0])
    assert Strips().encode(x, quality=goal).positions == (3,)


@pytest.mark.parametrize("quality", [math.nan, math.inf, "25", True])
def test_quality_that_is_no_number_is_refused(quality):
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: quality=.*finite number"):
        Strips().encode(pictures(1, 3, 6, 6), quality=quality)


def test_quality_needs_an_order():
    with pytest.raises(ValueError, match=r"stand_in_cells\.encode: quality"):
        Cells().encode(pictures(1, 3, 6, 6), quality=20)


# -- sampling ----------------------------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_neighbours():
    tok, x = Latents(), pictures(3, 3, 8, 8)
    drawn = tok.encode(x, sample=True, seed=3)
    assert torch.equal(drawn.data, tok.encode(x, sample=True, seed=3).data)
    assert not torch.equal(drawn.data, tok.encode(x, sample=True, seed=4).data)
    for i in range(3):
        assert torch.equal(drawn.data[i : i + 1], tok.encode(x[i : i + 1], sample=True, seed=3).data)
    assert torch.equal(drawn.data, tok.encode(list(x), sample=True, seed=3).data)


def test_nothing_to_sample_is_said():
    for x in (pictures(1, 3, 8, 8), [pictures(3, 8, 8)]):
        with pytest.raises(ValueError, match=r"stand_in_cells\.encode: sample=True.*nothing to sample"):
            Cells().encode(x, sample=True)


# -- options of decode -------------------------------------------------------------------------------------------------------------


def test_unknown_options_name_the_allowed_ones():
    tok = Strips()
    tokens = tok.encode(pictures(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"stand_in_strips\.decode: .*no option 'sede'. Allowed: seed, brightness\."):
        tok.decode(tokens, sede=3)
    with pytest.raises(ValueError, match=r"stand_in_cells\.decode: .*no option 'steps'. It takes none\."):
        Cells().decode(Cells().encode(pictures(1, 3, 4, 4)), steps=3)
    Waves().decode(Waves().encode(pictures(1, 1, 8)), whatever=1)


def test_a_list_of_an_option_has_one_value_for_each_item():
    tok = Strips()
    items = [pictures(3, 6, 6), pictures(3, 12, 6), pictures(3, 6, 6)]
    y = tok.decode(tok.encode(items), seed=[5, 6, 7])
    for i, item in enumerate(items):
        alone = tok.decode(tok.encode(item[None]), seed=5 + i)
        assert torch.equal(y[i, :, : item.shape[1]], alone[0])
    for batch in (items, [items[0]] * 3):
        with pytest.raises(ValueError, match=r"stand_in_strips\.decode: seed holds 2 values for 3 items"):
            tok.decode(tok.encode(batch), seed=[5, 6])


# -- refusals: encode --------------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 8, 8)
BAD_INPUT = {
    "no batch": (X[0], ValueError, r"shape \(3, 8, 8\).*\(b, 3, h, w\).*x\[None\]"),
    "video": (X[:, :, None], ValueError, r"shape \(2, 3, 1, 8, 8\).*\(b, 3, h, w\)"),
    "grey": (X[:, :1], ValueError, r"1 channels.*\(2, 1, 8, 8\).*3"),
    "channels last": (X.permute(0, 2, 3, 1), ValueError, r"8 channels"),
    "bytes": (X.byte(), ValueError, r"uint8.*v / 127\.5 - 1"),
    "empty batch": (X[:0], ValueError, r"empty batch"),
    "empty side": (X[..., :0], ValueError, r"\(2, 3, 8, 0\).*at least 1"),
    "NaN": (X + math.nan, ValueError, r"NaN or infinity"),
    "infinity": (X.clone().fill_(-math.inf), ValueError, r"NaN or infinity"),
    "bright": (X + 255, ValueError, r"255.*\[-1, 1\]"),
    "dark": (X - 1.01, ValueError, r"-1\.01.*\[-1, 1\]"),
    "other device": (X.to("meta"), ValueError, r"meta.*cpu"),
    "nothing": (None, TypeError, r"x is a NoneType.*\(b, 3, h, w\)"),
    "array": (X.numpy(), TypeError, r"x is a ndarray.*\(b, 3, h, w\)"),
    "picture": (Image.new("RGB", (8, 8)), TypeError, r"x is a Image"),
    "empty list": ([], ValueError, r"empty list"),
    "list of arrays": ([X[0].numpy()], TypeError, r"x\[0\] is a ndarray.*preprocess"),
    "list of batches": ([X], ValueError, r"x\[0\] has shape \(2, 3, 8, 8\).*\(3, h, w\), without a batch"),
    "list with NaN": ([X[0], X[0] + math.nan], ValueError, r"NaN or infinity"),
    "list with empty": ([X[0], X[0, :, :0]], ValueError, r"at least 1"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_encode_refuses(case):
    x, error, words = BAD_INPUT[case]
    for rate in ({}, {"bits_per_pixel": 0.2}):
        with pytest.raises(error, match=rf"^stand_in_cells\.encode: .*{words}"):
            Cells(SizeConfig(levels=2)).encode(x, **rate)


def test_a_decoded_overshoot_within_rounding_is_taken():
    Cells().encode(X + 1.0005)


def test_sides_above_the_limit_are_refused_both_ways():
    tok = Strips()
    with pytest.raises(ValueError, match=r"stand_in_strips\.encode: x has sides \(25, 6\).*up to 24; resize"):
        tok.encode(pictures(1, 3, 25, 6))
    with pytest.raises(ValueError, match=r"stand_in_strips\.decode: tokens are of sides \(6, 30\).*up to 24"):
        tok.decode(replace(tok.encode(pictures(1, 3, 6, 6)), extent=torch.tensor([[6, 30]])))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_signal_follows_the_type_of_the_weights(dtype):
    tok = Latents()
    assert tok.encode(X.to(dtype)).data.dtype == torch.float32
    tok = tok.to(torch.bfloat16)
    tokens = tok.encode(X)
    assert tokens.data.dtype == torch.bfloat16
    assert tok.decode(replace(tokens, data=tokens.data.to(dtype))).dtype == torch.bfloat16


# -- refusals: decode --------------------------------------------------------------------------------------------------------------


def altered(tokens, **changes):
    return replace(tokens, **changes)


def test_decode_refuses_what_is_no_tokens():
    with pytest.raises(TypeError, match=r"^stand_in_cells\.decode: tokens is a Tensor.*encode"):
        Cells().decode(torch.zeros(1, 2, 2, 1, dtype=torch.int64))


GRID = Cells().encode(X)
CONTINUOUS = replace(GRID.spec, vocabulary=(), channels=1)
LINE = Strips().encode(torch.zeros(2, 3, 6, 6))
BAD_TOKENS = {
    "foreign": (Cells, altered(GRID, spec=replace(GRID.spec, tokenizer="other")), r"tokens of 'other'"),
    "vocabulary": (Cells, altered(GRID, spec=replace(GRID.spec, vocabulary=(5,))), r"vocabulary \(5,\).*\(4,\)"),
    "latents": (Cells, Tokens(torch.zeros(2, 2, 2, 1), CONTINUOUS, GRID.extent), r"vocabulary \(\).*\(4,\)"),
    "empty": (Cells, GRID[:0], r"empty batch"),
    "code": (Cells, altered(GRID, data=GRID.data + 4), r"code \d at depth 0.*0\.\.3"),
    "negative": (Cells, altered(GRID, data=GRID.data - 9), r"code -\d at depth 0.*0\.\.3"),
    "grid": (Cells, altered(GRID, extent=torch.tensor([[8, 16], [8, 16]])), r"\(2, 2\).*\(8, 16\).*\(2, 4\)"),
    "one grid": (Cells, altered(GRID, extent=torch.tensor([[8, 8], [4, 8]])), r"\(2, 2\).*\(4, 8\).*\(1, 2\)"),
    "lengths": (Cells, altered(GRID, lengths=torch.tensor([2, 1])), r"\(1, 2\).*\(8, 8\).*\(2, 2\)"),
    "too many": (Strips, altered(LINE, data=torch.zeros(2, 7, 1, dtype=torch.int64)), r"7 positions.*1\.\.6"),
    "none": (Strips, altered(LINE, lengths=torch.tensor([0, 6])), r"0 positions.*1\.\.6"),
    "square": (Strips, altered(LINE, data=torch.zeros(2, 2, 3, 1, dtype=torch.int64)), r"2 x 3 positions.*1\.\.6"),
    "other device": (Cells, altered(GRID, data=GRID.data.to("meta")), r"meta.*cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_decode_refuses(case):
    cls, tokens, words = BAD_TOKENS[case]
    with pytest.raises(ValueError, match=rf"^{cls.family}\.decode: .*{words}"):
        cls().decode(tokens)


def test_a_fixed_layout_is_never_cut():
    tok = Fixed()
    tokens = tok.encode(torch.zeros(2, 3, 6, 6))
    assert tok.decode(tokens).shape == (2, 3, 6, 6)
    for short in (altered(tokens, data=tokens.data[:, :3]), altered(tokens, lengths=torch.tensor([6, 3]))):
        with pytest.raises(ValueError, match=r"stand_in_fixed\.decode: 3 positions. Allowed: 6"):
            tok.decode(short)


def test_latents_must_be_finite_and_normalised_alike():
    tok = Latents()
    tokens = tok.encode(X)
    with pytest.raises(ValueError, match=r"stand_in_latents\.decode: .*NaN"):
        tok.decode(altered(tokens, data=tokens.data * math.nan))
    with pytest.raises(ValueError, match=r"stand_in_latents\.decode: tokens have latents raw. Needed: normalised"):
        tok.decode(altered(tokens, spec=replace(tokens.spec, latents="raw")))
    with pytest.raises(ValueError, match=r"stand_in_latents\.decode: tokens have channels 2. Needed: 3"):
        tok.decode(Tokens(tokens.data[..., :2], replace(tokens.spec, channels=2), tokens.extent))


def test_filler_of_a_batch_does_not_matter():
    tok = Cells()
    tokens = tok.encode([pictures(3, 8, 8), pictures(3, 4, 4)])[[1]]
    wide = Tokens(nn.functional.pad(tokens.data, (0, 0, 0, 3, 0, 2)), tokens.spec, tokens.extent, torch.tensor([[1, 1]]))
    assert torch.equal(tok.decode(wide), tok.decode(tokens))


# -- facts and doors ---------------------------------------------------------------------------------------------------------------


def test_facts_follow_from_the_configuration():
    tok = Waves(SizeConfig(levels=3))
    assert tok.info.name == tok.family == "stand_in_waves"
    assert tok.spec.vocabulary == (16, 16, 16)
    assert tok.spec.residual
    assert tok.in_channels == 1
    assert Cells().in_channels == 3
    assert Cells().device == torch.device("cpu")
    assert Cells().to(torch.float16).dtype == torch.float16


def test_streaming_is_refused_in_words():
    with pytest.raises(ValueError, match=r"stand_in_cells\.stream: .*streaming=True"):
        Cells().stream()


def test_pictures_in_and_out():
    tok = Strips()
    x = tok.preprocess(Image.new("RGB", (20, 10), (255, 0, 128)))
    assert x.shape == (1, 3, 6, 6)
    assert x.dtype == torch.float32
    assert x[0, :, 0, 0].tolist() == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)
    assert tok.preprocess(Image.new("RGB", (20, 10)), size=(4, 8)).shape == (1, 3, 4, 8)
    (picture,) = tok.postprocess(x * 3)
    assert picture.getpixel((0, 0)) == (255, 0, 129)
    assert tok.to(torch.bfloat16).preprocess(Image.new("RGB", (20, 10))).dtype == torch.bfloat16


def test_sounds_are_read_at_the_rate_of_the_tokenizer():
    tok = Waves()
    x = torch.linspace(-1, 1, 50)
    assert torch.equal(tok.preprocess(x, sample_rate=tok.info.sample_rate), x[None, None])
    assert tok.preprocess(x, sample_rate=2 * tok.info.sample_rate).shape == (1, 1, 25)
    (array,) = tok.postprocess(x[None, None])
    assert array.tolist() == [x.tolist()]
    with pytest.raises(ValueError, match=r"stand_in_waves\.preprocess: sound has no size"):
        tok.preprocess(x, size=4)



def test_gradients_are_the_callers_choice():
    tok = Latents()
    x = pictures(1, 3, 8, 8).requires_grad_()
    tok(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert tok.one.grad is not None
    with torch.inference_mode():
        assert not tok(x).requires_grad


def test_a_family_of_your_own_can_be_registered_and_created(monkeypatch):
    from zoo import registry

    monkeypatch.setattr(registry, "_EXTRA", {})
    layout = Cells.layout_of(SizeConfig(cell=2))
    zoo.register(zoo.Entry(name="my_cells", family=Cells.family, summary="", config={"cell": 2}, **layout))
    tok = zoo.create("my_cells")
    assert type(tok) is Cells
    zoo.register(replace(zoo.info("my_cells"), name="my_other", family="stand_in_other"))
    with pytest.raises(ValueError, match=r"family 'stand_in_other' is not defined\. Import the module"):
        zoo.create("my_other")
    assert tok.encode(X).positions == (4, 4)
