"""The promises of the contract, on the small form of every kind of entry in the catalog.

Weights are random and every comparison is with the same tokenizer by another way (alone, in a batch, cut, saved, exported), so the
promises hold whatever the weights are. Whether a family computes what its paper says is the business of its own tests.
"""

import copy
import json
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import zoo
from tests.contract.small import SMALL, built, cases
from zoo.checkpoint import load_strict, write_folder
from zoo.publishing import folder_config
from zoo.tokens import Tokens
from zoo.transforms.quality import Quality, psnr_db

CASES = cases()
EXACT, CLOSE = 0.0, 1e-5


class Case:
    """A small tokenizer with inputs for it."""

    def __init__(self, name):
        self.name = name
        self.tok = built(name)
        self.info = self.tok.info
        self.small = SMALL[self.info.family]

    def options(self, rows, tok=None):
        """What `decode` needs for items of these numbers."""
        each = [self.small.options(tok or self.tok, row) for row in rows]
        return {key: [one[key] for one in each] for key in each[0]}

    def decode(self, tokens, rows=None, tok=None, **more):
        tok = tok or self.tok
        return tok.decode(tokens, **{**self.options(rows if rows is not None else range(len(tokens)), tok), **more})

    @property
    def size(self):
        """The size that the small form was made for; five frames of video, eight positions of sound."""
        if self.info.modality == "audio":
            return (8 * self.info.downsample[0] if self.info.downsample else 2000,)
        return self.info.native_size if self.info.modality == "image" else (5, *self.info.native_size)

    def decoded_shape(self, x):
        """What `decode` gives for the tokens of `x`: a signal of its shape, or the embeddings of a tokenizer of meaning."""
        if self.small.embedding is None:
            return x.shape
        positions = self.tok._grid(self.tok._legal_size(tuple(x.shape[2:]))) if self.small.each_position else ()
        return (len(x), *positions, self.small.embedding)

    def signal(self, b=2, size=None, seed=0):
        draws = torch.Generator().manual_seed(seed)
        return torch.rand(b, self.tok.in_channels, *(size or self.size), generator=draws) * 2 - 1

    def sizes(self, count=5):
        """The smallest size, and random ones up to what is allowed, at most one and a half of the native one."""
        draws = random.Random(self.name)
        most = [min(self.info.max_size or side * 3 // 2, side * 3 // 2) for side in self.size]
        return [(1,) * len(most), *(tuple(draws.randint(1, side) for side in most) for _ in range(count - 1))]


def case_of(name):
    family = zoo.info(name).family
    if family not in SMALL:
        pytest.fail(
            f"the family {family!r} ({', '.join(CASES[name])}) has no small form, so its promises are not tested. Add it to SMALL "
            "in tests/contract/small.py: config, loss and step."
        )
    return Case(name)


@pytest.fixture(scope="session", params=CASES)
def case(request):
    return case_of(request.param)


@pytest.fixture(scope="module", params={zoo.info(name).family: name for name in reversed(CASES)}.values())
def exportable(request):
    """One kind of each family."""
    return case_of(request.param)


def same(a, b, tolerance=EXACT):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if tolerance:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.detach().abs().max())))
    else:
        assert torch.equal(a, b)


def same_tokens(a, b, tolerance=EXACT):
    assert a.spec == b.spec
    assert a.extent.tolist() == b.extent.tolist()
    assert a.sizes.tolist() == b.sizes.tolist()
    same(a.data, b.data, EXACT if a.discrete else tolerance)


def codes_are_legal(tokens):
    if tokens.discrete:
        assert tokens.data.dtype == torch.int64
        for level, size in enumerate(tokens.spec.vocabulary[: tokens.levels]):
            assert int(tokens.data[..., level].min()) >= 0
            assert int(tokens.data[..., level].max()) < size
    else:
        assert tokens.data.is_floating_point()
        assert bool(tokens.data.isfinite().all())


def test_every_entry_of_the_catalog_is_in_the_contract():
    assert sorted(name for names in CASES.values() for name in names) == sorted(e.name for e in zoo.find())


# -- tokens ------------------------------------------------------------------------------------------------------------------------


def test_tokens_are_what_the_entry_says(case):
    tokens = case.tok.encode(case.signal())
    info = case.info
    codes_are_legal(tokens)
    assert tokens.spec == case.tok.spec
    assert tokens.discrete == info.discrete
    assert tokens.levels == (info.depth if info.discrete else info.channels)
    assert len(tokens.positions) == int(info.layout[0])
    if info.tokens is not None:
        assert math.prod(tokens.positions) == info.tokens
    if info.bits_per_pixel is not None:
        assert tokens.bits_per_pixel().tolist() == pytest.approx([info.bits_per_pixel] * 2, rel=1e-4)
    if info.bits_per_second is not None:
        seconds = case.size[0] / (info.sample_rate or 25)  # video at 25 frames a second
        assert (tokens.bits() / seconds).tolist() == pytest.approx([info.bits_per_second] * 2, rel=0.05)


def test_codes_stay_in_range_for_any_legal_signal(case):
    x = case.signal(5)
    for i, value in enumerate((-1.0, 0.0, 1.0)):
        x[i] = value
    x[3] = x[3].sign()
    codes_are_legal(case.tok.encode(x))


def test_what_decode_gives(case):
    x = case.signal()
    y = case.decode(case.tok.encode(x))
    assert y.shape == case.decoded_shape(x)
    assert y.dtype == torch.float32
    assert bool(y.isfinite().all())
    assert float(y.std()) > 0


# -- sizes and batches -------------------------------------------------------------------------------------------------------------


def test_any_size_comes_back_as_it_was(case):
    for i, size in enumerate(case.sizes()):
        x = case.signal(1, size, seed=i)
        tokens = case.tok.encode(x)
        codes_are_legal(tokens)
        assert tokens.extent.tolist() == [list(size)]
        assert case.decode(tokens).shape == case.decoded_shape(x), size


def test_a_list_of_unequal_items_equals_one_by_one(case):
    sizes = case.sizes(4)
    items = [case.signal(1, size, seed=i)[0] for i, size in enumerate([*sizes, sizes[1]])]
    together = case.tok.encode(items)
    y = case.decode(together)
    signals = case.small.embedding is None
    if signals:
        assert y.shape[2:] == tuple(max(sides) for sides in zip(*sizes, strict=True))
    for i, item in enumerate(items):
        alone = case.tok.encode(item[None])
        same_tokens(together[i], alone, CLOSE)
        one = case.decode(alone, [i])
        same(y[(slice(i, i + 1), *(slice(side) for side in one.shape[1:]))], one, CLOSE)


def test_an_item_does_not_depend_on_its_batch(case):
    x = case.signal(4)
    tokens = case.tok.encode(x)
    y = case.decode(tokens)
    for i in range(4):
        alone = case.tok.encode(x[i : i + 1])
        same_tokens(tokens[i], alone, CLOSE)
        same(y[i : i + 1], case.decode(alone, [i]), CLOSE)
    turned = case.tok.encode(x.flip(0))
    same_tokens(turned[[3, 2, 1, 0]], tokens, CLOSE)


# -- rates -------------------------------------------------------------------------------------------------------------------------


def test_a_prefix_of_an_ordered_tokenizer(case):
    if not case.info.ordered:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: tokens=1"):
            case.tok.encode(case.signal(), tokens=1)
        return
    x, n = case.signal(), case.info.tokens
    whole = case.tok.encode(x)
    previous = None
    for k in (1, n // 2, n - 1, n):
        cut = case.tok.encode(x, tokens=k)
        same_tokens(cut, whole.keep(k))
        y = case.decode(cut)
        assert y.shape == x.shape
        assert previous is None or not torch.equal(y, previous), "more tokens change the picture"
        previous = y
    mixed = case.tok.encode(case.signal(3), tokens=[1, n, n // 2])
    assert mixed.counts.tolist() == [1, n, n // 2]
    y = case.decode(mixed)
    for i, k in enumerate((1, n, n // 2)):
        alone = case.tok.encode(case.signal(3)[i : i + 1], tokens=k)
        same_tokens(mixed[i], alone)
        same(y[i : i + 1], case.decode(alone, [i]), CLOSE)


def test_a_prefix_of_a_residual_tokenizer(case):
    if not case.info.residual:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: depth=1"):
            case.tok.encode(case.signal(), depth=1)
        return
    x = case.signal()
    whole = case.tok.encode(x)
    pictures = []
    for d in case.tok.spec.depths:
        cut = case.tok.encode(x, depth=d)
        same_tokens(cut, whole.depth(d))
        pictures.append(case.decode(cut))
    for a, b in pairwise(pictures):
        assert not torch.equal(a, b), "another level changes the picture"


def test_a_rate_in_bits_takes_the_nearest_lower_setting(case):
    audio = case.info.modality == "audio"
    key = "bits_per_second" if audio else "bits_per_pixel"
    if not (case.info.ordered or case.info.residual):
        with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: {key}=.*one rate only"):
            case.tok.encode(case.signal(), **{key: 1e6})
        return
    x = case.signal(1)
    whole = case.tok.encode(x)
    settings = range(1, case.info.tokens + 1) if case.info.ordered else case.tok.spec.depths
    cuts = [whole.keep(k) if case.info.ordered else whole.depth(k) for k in settings]
    for cut, lower in zip(cuts, [None, *cuts], strict=False):
        rate = float(getattr(cut, key)())
        same_tokens(case.tok.encode(x, **{key: rate}), cut)
        if lower is not None:
            same_tokens(case.tok.encode(x, **{key: rate * 0.999}), lower)
    with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: {key}=.*too little"):
        case.tok.encode(x, **{key: 1e-6})


def test_quality_takes_the_smallest_prefix_that_reaches(case):
    if not case.info.ordered:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: quality"):
            case.tok.encode(case.signal(), quality=10.0)
        return
    x, n = case.signal(3), case.info.tokens

    def score(x, y):
        return psnr_db(x.clamp(-1, 1), y)

    scores = torch.stack([score(x, case.decode(case.tok.encode(x, tokens=k), seed=3)) for k in range(1, n + 1)], 1)
    target = float(scores.median())
    tokens = case.tok.encode(x, quality=Quality(target, score), seed=3)
    for row, k in zip(scores, tokens.counts.tolist(), strict=True):
        if float(row[k - 1]) >= target:
            assert k == 1 or float(row[k - 2]) < target
        else:
            assert k == n
    assert case.tok.encode(x, quality=Quality(1e9, score)).counts.tolist() == [n] * 3
    assert case.tok.encode(x, quality=Quality(-1e9, score)).counts.tolist() == [1] * 3


# -- chance ------------------------------------------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_result(case):
    before = torch.get_rng_state()
    x = case.signal()
    tokens = case.tok.encode(x)
    same_tokens(case.tok.encode(x), tokens)
    same(case.decode(tokens), case.decode(tokens))
    if case.info.stochastic_decode:
        same(case.decode(tokens, seed=5), case.decode(tokens, seed=5))
        same(case.decode(tokens, seed=[5, 5]), case.decode(tokens, seed=5))
        assert not torch.equal(case.decode(tokens, seed=5), case.decode(tokens, seed=6))
    else:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.decode: .*no option 'seed'"):
            case.decode(tokens, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was touched"


def test_sampling_in_the_encoder(case):
    x = case.signal()
    if not case.info.stochastic_encode:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: sample=True.*nothing to sample"):
            case.tok.encode(x, sample=True)
        return
    before = torch.get_rng_state()
    drawn = case.tok.encode(x, sample=True, seed=3)
    codes_are_legal(drawn)
    same_tokens(case.tok.encode(x, sample=True, seed=3), drawn)
    same_tokens(case.tok.encode(x[1:], sample=True, seed=3), drawn[1])
    assert torch.equal(torch.get_rng_state(), before), "the global generator was touched"
    # A small quantizer may round the noise away, so many draws are looked at.
    others = [case.tok.encode(x, sample=True, seed=seed).data for seed in range(8)]
    assert any(not torch.equal(other, drawn.data) for other in others)


def test_create_is_a_function_of_the_global_seed(case):
    again = built(case.name)
    for (name, a), (other, b) in zip(case.tok.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name


# -- weights -----------------------------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_tokenizer(case, tmp_path):
    folder = write_folder(tmp_path / "folder", config=folder_config(case.tok), tensors=case.tok.state_dict())
    loaded = zoo.load(folder)
    assert type(loaded) is type(case.tok)
    assert loaded.config == case.tok.config
    assert loaded.info == case.info
    assert json.loads((folder / "config.json").read_text())["family"] == case.info.family
    x = case.signal()
    tokens = case.tok.encode(x)
    same_tokens(loaded.encode(x), tokens)
    same(case.decode(tokens, tok=loaded), case.decode(tokens))


def test_loading_is_strict_and_all_or_nothing(case):
    state = case.tok.state_dict()
    names = [name for name, value in state.items() if value.ndim]
    wrong = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    del wrong[names[0]]
    wrong[names[1]] = torch.zeros(3, 1, 4, 1, 5)
    wrong["colour"] = torch.zeros(1)
    tok = copy.deepcopy(case.tok)
    with pytest.raises(ValueError, match=case.info.name) as caught:
        load_strict(tok, wrong, name=case.info.name)
    text = str(caught.value)
    assert f"1 missing: {names[0]}" in text
    assert "1 unexpected: colour" in text
    assert f"1 of another shape: {names[1]} (3, 1, 4, 1, 5)" in text
    for name, value in tok.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} was changed"


def test_the_meta_device_knows_every_shape(case):
    with torch.device("meta"):
        blank = type(case.tok)(case.tok.config, case.info)
    assert all(value.is_meta for value in blank.state_dict().values())
    found = {name: (value.shape, value.dtype) for name, value in blank.state_dict().items()}
    assert found == {name: (value.shape, value.dtype) for name, value in case.tok.state_dict().items()}


def test_type_and_device_follow_the_weights(case):
    tok = copy.deepcopy(case.tok).to(torch.bfloat16)
    assert {p.dtype for p in tok.parameters()} == {torch.bfloat16}
    assert tok.dtype == torch.bfloat16
    assert tok.device == torch.device("cpu")
    tokens = tok.encode(case.signal())
    codes_are_legal(tokens)
    if not tokens.discrete:
        assert tokens.data.dtype == torch.bfloat16
    y = case.decode(tokens, tok=tok)
    assert y.dtype == torch.bfloat16
    assert bool(y.isfinite().all())
    far = copy.deepcopy(case.tok).to("meta")
    assert all(value.is_meta for value in [*far.parameters(), *far.buffers()])
    with pytest.raises(ValueError, match=rf"{case.info.name}\.encode: x is on cpu, the weights are on meta"):
        far.encode(case.signal())


def test_autocast_keeps_codes_legal(case):
    x = case.signal()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = case.tok.encode(x)
        y = case.decode(tokens)
    codes_are_legal(tokens)
    assert tokens.sizes.tolist() == case.tok.encode(x).sizes.tolist()
    assert y.shape == case.decoded_shape(x)
    assert bool(y.isfinite().all())


# -- training ----------------------------------------------------------------------------------------------------------------------


def test_gradients_reach_every_trained_parameter(case):
    tok = copy.deepcopy(case.tok).train().requires_grad_(True)
    frozen = tuple(case.small.frozen)
    for name, parameter in tok.named_parameters():
        if frozen and name.startswith(frozen):
            parameter.requires_grad_(False)
    loss = case.small.loss(tok, case.signal(4), torch.Generator().manual_seed(0))
    assert loss.ndim == 0
    assert bool(loss.isfinite())
    loss.backward()
    trained = {name: p.grad for name, p in tok.named_parameters() if p.requires_grad}
    unreached = [name for name, grad in trained.items() if grad is None or not grad.any()]
    assert not unreached, f"the loss does not depend on {unreached}"
    assert all(bool(grad.isfinite().all()) for grad in trained.values())


def test_encode_and_decode_leave_gradients_to_the_caller(case):
    tok = copy.deepcopy(case.tok).requires_grad_(True)
    x = case.signal(1)
    y = case.decode(tok.encode(x), tok=tok)
    assert y.requires_grad, "no gradient is switched off inside"
    with torch.inference_mode():
        assert not case.decode(tok.encode(x), tok=tok).requires_grad


# -- files and refusals ------------------------------------------------------------------------------------------------------------


def test_tokens_survive_a_file(case, tmp_path):
    tokens = case.tok.encode([case.signal(1, size, seed=i)[0] for i, size in enumerate(case.sizes(3))])
    loaded = Tokens.load(tokens.save(tmp_path / "tokens.safetensors"))
    same_tokens(loaded, tokens)
    same(case.decode(loaded), case.decode(tokens))
    if case.info.discrete:
        ids = tokens.flatten(joint=True)
        assert torch.equal(tokens.unflatten(ids, joint=True).data, tokens.data)


def test_what_encode_refuses(case):
    x, name = case.signal(), case.info.name
    refused = {
        "x has shape": x[0],
        "x has dtype": (x * 100).long(),
        "x is an empty batch": x[:0],
        "channels": torch.cat([x, x], 1),
        "NaN or infinity": torch.full_like(x, math.nan),
        "Every axis": x[..., :0],
    }
    if case.tok._bounded:
        refused["x reaches from"] = x * 3
    if case.info.max_size is not None:
        refused["x has sides"] = case.signal(1, (*case.size[:-1], case.info.max_size + 1))
    for words, wrong in refused.items():
        with pytest.raises(ValueError, match=rf"{name}\.encode: .*{words}"):
            case.tok.encode(wrong)
    with pytest.raises(TypeError, match=rf"{name}\.encode: x is a ndarray"):
        case.tok.encode(x.numpy())


def test_what_decode_refuses(case):
    tokens, name = case.tok.encode(case.signal()), case.info.name
    refused = {
        "tokens of 'other'": replace(tokens, spec=replace(tokens.spec, tokenizer="other")),
        "empty batch": tokens[:0],
        "positions": replace(tokens, data=torch.cat([tokens.data, tokens.data], 1)),
    }
    if tokens.discrete:
        sizes = torch.tensor(tokens.spec.vocabulary)
        refused["code -1 at depth 0"] = replace(tokens, data=tokens.data.clone().fill_(-1))
        refused[rf"code {sizes[0]} at depth 0 is outside 0\.\.{sizes[0] - 1}"] = replace(tokens, data=tokens.data * 0 + sizes)
        refused["vocabulary"] = replace(tokens, spec=replace(tokens.spec, vocabulary=tuple(v + 1 for v in tokens.spec.vocabulary)))
    else:
        refused["NaN"] = replace(tokens, data=tokens.data * math.nan)
        refused["latents raw"] = replace(tokens, spec=replace(tokens.spec, latents="raw"))
    for words, wrong in refused.items():
        with pytest.raises(ValueError, match=rf"{name}\.decode: .*{words}"):
            case.decode(wrong, rows=range(2))
    with pytest.raises(TypeError, match=rf"{name}\.decode: tokens is a Tensor"):
        case.tok.decode(tokens.data)
    with pytest.raises(ValueError, match=rf"{name}\.decode: this tokenizer has no option 'colour'"):
        case.decode(tokens, colour=1)


def test_streaming_is_what_the_entry_says(case):
    """Chunks of any size give the codes and the signal of the whole."""
    if not case.info.streaming:
        with pytest.raises(ValueError, match=rf"{case.info.name}\.stream: "):
            case.tok.stream()
        return
    length = 2 * case.size[0] + 3
    x = case.signal(2, (length, *case.size[1:]))
    whole = case.tok.encode(x)
    draws = random.Random(case.name)
    for largest in (1, length // 3, length):
        sizes = []
        while sum(sizes) < length:
            sizes.append(min(draws.randint(1, largest), length - sum(sizes)))
        parts = list(case.tok.stream().encode_all(x.split(sizes, 2)))
        joined = Tokens.join(parts)
        same_tokens(joined, whole, CLOSE)
        seed = {"seed": 0} if case.info.stochastic_decode else {}
        y = torch.cat(list(case.tok.stream(**seed).decode_all(parts)), 2)
        assert y.shape == x.shape
        same(y, case.decode(whole, **seed), CLOSE)


def test_nothing_before_depends_on_what_comes_later(case):
    """`causal` and `lookahead_frames` say how far the past feels the future."""
    if case.info.modality == "image" or not (case.info.causal or case.info.lookahead_frames is not None):
        return
    ahead = case.info.lookahead_frames or 0
    length = 3 * case.size[0]
    x, other = case.signal(1, (length, *case.size[1:])), case.signal(1, (length, *case.size[1:]), seed=9)
    whole = case.tok.encode(x)
    y = case.decode(whole)
    for positions in range(1, whole.positions[0]):
        cut = case.tok._span(positions)
        mixed = torch.cat([x[:, :, :cut], other[:, :, cut:]], 2)
        changed = case.tok.encode(mixed)
        audio = case.info.modality == "audio"  # whose frames are positions
        if positions > ahead if audio else not ahead:
            kept = positions - ahead
            same(changed.data[:, :kept], whole.data[:, :kept], CLOSE)
        final = case.tok._span(max(0, positions - ahead)) if audio else max(0, cut - ahead)
        if final:
            turned = replace(whole, data=torch.cat([whole.data[:, :positions], whole.data[:, positions:].flip(1)], 1))
            same(case.decode(turned)[:, :, :final], y[:, :, :final], CLOSE)


# -- export ------------------------------------------------------------------------------------------------------------------------


class _Encode(nn.Module):
    def __init__(self, tok):
        super().__init__()
        self.tok = tok

    def forward(self, x):
        return self.tok._encode(x, tokens=None, depth=None, generator=None)


class _Decode(nn.Module):
    def __init__(self, tok, step):
        super().__init__()
        self.tok, self.step = tok, step

    def forward(self, data):
        return self.step(self.tok, data)


def exported(module, *inputs):
    """Export with a batch whose size is not fixed, and compare with the module at every size that is given."""
    module = module.eval()
    batch = torch.export.Dim("batch", min=1, max=32)
    program = torch.export.export(module, inputs[:1], dynamic_shapes=({0: batch},)).module()
    for x in inputs:
        same(program(x), module(x), CLOSE)


def test_the_encoder_can_be_exported(exportable):
    exported(_Encode(exportable.tok), exportable.signal(2), exportable.signal(3, seed=1))


def test_a_call_of_the_decoder_can_be_exported(exportable):
    a, b = (exportable.tok.encode(exportable.signal(n, seed=n)).data for n in (2, 3))
    exported(_Decode(exportable.tok, exportable.small.step), a, b)
