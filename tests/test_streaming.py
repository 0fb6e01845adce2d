"""Bookkeeping of streams, on a codec whose whole result is known: the mean of each hop, in 8 bits."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.config import Config
from zoo.streaming import Stream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Segment, Tokens, TokenSpec

HOP = 4


@dataclass(frozen=True, kw_only=True)
class MeanConfig(Config):
    hop: int = HOP


class MeanStream(Stream):
    """Holds back what does not fill a hop; decodes one position late, as a codec with lookahead does."""

    def __init__(self, tok):
        super().__init__(tok)
        self.held = None
        self.late = None

    def _encode(self, x, *, last):
        self.held = x if self.held is None else torch.cat([self.held, x], 2)
        whole = self.held.shape[2] // HOP * HOP
        ready, self.held = self.held[..., :whole], self.held[..., whole:]
        if last and self.held.shape[2]:
            ready = torch.cat([ready, self.tok._pad(self.held, (HOP,))], 2)
        return self.tok._encode(ready, tokens=None, depth=None, generator=None) if ready.shape[2] else None

    def _decode(self, tokens, *, last):
        parts = [part for part in (self.late, None if tokens is None else tokens.data) if part is not None]
        data = torch.cat(parts, 1)
        ready, self.late = (data, None) if last else (data[:, :-1], data[:, -1:])
        return self.tok.expand(ready) if ready.shape[1] else None


class Mean(Tokenizer):
    Config = MeanConfig

    def __init__(self, config, info=None):
        self.family = "mean"
        super().__init__(config, info)
        self.scale = nn.Parameter(torch.tensor(127.5))

    @classmethod
    def layout_of(cls, config):
        return dict(
            modality="audio", layout="1d", discrete=True, vocabulary=(256,), codebook_size=256, sample_rate=16000, audio_channels=1,
            downsample=(config.hop, 1, 1), size_multiple=config.hop, causal=True, streaming=True,
        )  # fmt: skip

    def _encode(self, x, *, tokens, depth, generator):
        means = x.unflatten(2, (-1, HOP)).mean(3)
        return ((means + 1) * self.scale).round().long().clamp(0, 255).transpose(1, 2)

    def expand(self, data):
        return (data.transpose(1, 2) / self.scale - 1).repeat_interleave(HOP, 2)

    def _decode(self, tokens, size):
        return self.expand(tokens.data)

    def _stream(self):
        return MeanStream(self)


@pytest.fixture(scope="module")
def tok():
    return Mean(MeanConfig()).eval().requires_grad_(False)


def signal(samples, b=1, seed=0):
    return torch.rand(b, 1, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 11), min_size=1, max_size=8), cuts=st.lists(st.integers(1, 3), min_size=1, max_size=30))
def test_joined_parts_equal_the_whole(tok, sizes, cuts):
    x = signal(sum(sizes), b=2)
    whole = tok.encode(x)
    joined = Tokens.join(list(tok.stream().encode_all(x.split(sizes, 2))))
    assert torch.equal(joined.data, whole.data)
    assert joined.extent.tolist() == whole.extent.tolist()
    parts, start = [], 0
    while start < whole.positions[0]:
        n = min(cuts[len(parts) % len(cuts)], whole.positions[0] - start)
        extent = min(sum(sizes), (start + n) * HOP) - start * HOP
        parts.append(Tokens(whole.data[:, start : start + n], whole.spec, [[extent]] * 2))
        start += n
    assert torch.equal(torch.cat(list(tok.stream().decode_all(parts)), 2), tok.decode(whole))


def test_the_end_may_come_without_a_chunk(tok):
    stream, x = tok.stream(), signal(10)
    parts = [stream.encode(x[..., :3]), stream.encode(x[..., 3:]), stream.encode(x[..., :0], last=True)]
    assert parts[0] is None
    assert [part.extent.tolist() for part in parts[1:]] == [[[8]], [[2]]]
    y = [stream.decode(parts[1]), stream.decode(parts[2]), stream.decode(None, last=True)]
    assert [piece.shape[2] for piece in y] == [4, 4, 2]


REFUSED = {
    "NaN": (lambda tok, s: s.encode(signal(4) * float("nan")), "NaN"),
    "empty chunk": (lambda tok, s: s.encode(signal(4)[..., :0]), "Every axis"),
    "empty signal": (lambda tok, s: s.encode(signal(4)[..., :0], last=True), "the signal is empty"),
    "channels": (lambda tok, s: s.encode(torch.zeros(1, 2, 4)), "2 channels"),
    "batch": (lambda tok, s: (s.encode(signal(4)), s.encode(signal(4, b=2))), r"batch and sides \(2,\) after \(1,\)"),
    "after the end": (lambda tok, s: (s.encode(signal(4), last=True), s.encode(signal(4))), "this stream has ended"),
    "nothing to decode": (lambda tok, s: s.decode(None), "tokens=None before the end"),
    "code": (lambda tok, s: s.decode(Tokens(torch.full((1, 1, 1), 256), tok.spec, [[4]])), "code 256"),
    "foreign": (
        lambda tok, s: s.decode(Tokens(torch.zeros(1, 1, 7).long(), MULTI, [[4]])),
        "tokens of 'snail'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tok, case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        call(tok, tok.stream())
    assert str(caught.value).startswith("mean.")


def test_join_refuses_what_is_no_stretch_of_one_signal(tok):
    a = tok.encode(signal(8))
    with pytest.raises(ValueError, match="parts is empty"):
        Tokens.join([])
    with pytest.raises(ValueError, match="same batch, grid and depth"):
        Tokens.join([a, tok.encode(signal(8, b=2))])
    with pytest.raises(ValueError, match="lengths or scales"):
        Tokens.join([tok.encode([signal(8)[0], signal(4)[0]])])


MULTI = TokenSpec(
    tokenizer="snail", modality="audio", vocabulary=(8,) * 7, residual=True,
    segments=(Segment(length=1, stride=4), Segment(length=2, stride=2), Segment(length=4, stride=1)),
)  # fmt: skip


def test_levels_of_several_rates_are_cut_at_their_ends():
    tokens = Tokens(torch.arange(14).view(1, 2, 7) % 8, MULTI, [[100]])
    assert MULTI.depths == [1, 3, 7]
    assert [tokens.depth(d).levels for d in MULTI.depths] == [1, 3, 7]
    assert float(tokens.depth(3).bits()) == 2 * 3 * 3
    with pytest.raises(ValueError, match=r"d=2 cuts inside a level\. Allowed: 1, 3, 7"):
        tokens.depth(2)
    with pytest.raises(ValueError, match=r"depth 2\. Needed: 1, 3, 7"):
        Tokens(tokens.data[..., :2], MULTI, [[100]])
    with pytest.raises(ValueError, match="segments hold 7 codes for 6 vocabularies"):
        TokenSpec(tokenizer="a", modality="audio", vocabulary=(8,) * 6, residual=True, segments=MULTI.segments)
    assert torch.equal(Tokens.join([tokens, tokens]).data, torch.cat([tokens.data] * 2, 1))
