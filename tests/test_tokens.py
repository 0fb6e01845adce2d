"""Tokens: every operation against a plain model of lists, on tokens of any layout; and the refusal of everything illegal."""

import copy
import dataclasses
import json
import math
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.tokens import Segment, Tokens, TokenSpec

settings.register_profile(
    "tokens", max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
settings.load_profile("tokens")
SIZES = (1, 2, 5, 256, 257, 65536, 65537, 2**31, 2**31 + 1, 2**62)
ORDERS = ("position", "level", "delay")


# -- any tokens --------------------------------------------------------------------------------------------------------------------


def codes_of(shape, vocabulary, seed):
    draws = torch.Generator().manual_seed(seed)
    columns = []
    for size in vocabulary:
        column = torch.randint(size, shape, generator=draws)
        column.view(-1)[:1] = size - 1  # the largest code is always there
        columns.append(column)
    return torch.stack(columns, -1)


@st.composite
def any_tokens(draw, *, axes=None, ordered=None, residual=None, discrete=True, unequal=None, batch=None):
    axes = draw(st.integers(1, 3)) if axes is None else axes
    positions = tuple(draw(st.lists(st.integers(1, 5), min_size=axes, max_size=axes)))
    b = draw(st.integers(1, 4)) if batch is None else batch
    depth = draw(st.integers(1, 4))
    ordered = draw(st.booleans()) if ordered is None else ordered
    residual = draw(st.booleans()) if residual is None else residual
    segments = ()
    if axes == 1 and draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        segments = tuple(Segment(length=n, stride=2 ** (len(lengths) - 1 - i)) for i, n in enumerate(lengths))
        if discrete and residual and not ordered:
            depth = sum(lengths)
        else:
            positions = (sum(lengths),)
    modality = draw(st.sampled_from(("image", "video", "audio")))
    spec = TokenSpec(
        tokenizer="stand_in",
        modality=modality,
        vocabulary=tuple(draw(st.lists(st.sampled_from(SIZES), min_size=depth, max_size=depth))) if discrete else (),
        channels=None if discrete else depth,
        ordered=ordered,
        residual=residual,
        sample_rate=draw(st.sampled_from((None, 25, 24000))),
        segments=segments,
    )
    seed = draw(st.integers(0, 2**31))
    extent_axes = {"image": 2, "video": 3, "audio": 1}[modality]
    sides = st.lists(st.integers(1, 99), min_size=extent_axes, max_size=extent_axes)
    extent = torch.tensor(draw(st.lists(sides, min_size=b, max_size=b)))
    if discrete:
        data = codes_of((b, *positions), spec.vocabulary, seed)
    else:
        data = torch.randn(b, *positions, depth, generator=torch.Generator().manual_seed(seed))
    side = {}
    if draw(st.booleans()):
        side = {"scale": torch.arange(b * 3, dtype=torch.float32).view(b, 3) + seed, "flag": torch.arange(b) % 2 == 0}
    tokens = Tokens(data, spec, extent.view(b, extent_axes), side=side)
    if unequal or (unequal is None and not segments and draw(st.booleans())):
        column = st.integers(1, positions[0])
        if axes > 1 and draw(st.booleans()):
            sizes = torch.tensor([[draw(st.integers(1, side)) for side in positions] for _ in range(b)])
        else:
            sizes = torch.tensor([draw(column) for _ in range(b)])
        real = Tokens(data, spec, tokens.extent, sizes).mask
        data = data.masked_fill(~real[..., None], 0)
        tokens = Tokens(data, spec, tokens.extent, sizes, side)
    return tokens


def real_sizes(tokens):
    """Real size of each item along each axis of positions, in plain Python."""
    if tokens.lengths is None:
        return [tokens.positions] * len(tokens)
    rows = tokens.lengths.tolist()
    return [tuple(row) if isinstance(row, list) else (row, *tokens.positions[1:]) for row in rows]


def items(tokens):
    """The real codes of each item as nested lists."""
    return [tokens.data[(i, *(slice(n) for n in size))].tolist() for i, size in enumerate(real_sizes(tokens))]


def same(a, b):
    assert a.spec == b.spec
    assert items(a) == items(b)
    assert a.data.dtype == b.data.dtype
    assert a.extent.dtype == b.extent.dtype == torch.int64
    assert a.extent.tolist() == b.extent.tolist()
    assert a.side.keys() == b.side.keys()
    for key in a.side:
        assert a.side[key].dtype == b.side[key].dtype
        assert torch.equal(a.side[key], b.side[key])


def ends(tokens):
    """The counts that `keep` allows, in plain Python."""
    if not tokens.spec.segments:
        return list(range(1, tokens.positions[0] + 1))
    out = [0]
    for segment in tokens.spec.segments:
        out.append(out[-1] + segment.length)
    return [n for n in out[1:] if n <= tokens.positions[0]]


# -- rate --------------------------------------------------------------------------------------------------------------------------


@given(any_tokens(ordered=True), st.data())
def test_keep_is_a_prefix_of_every_item(tokens, data):
    ks = [data.draw(st.sampled_from(ends(tokens))) for _ in range(len(tokens))]
    kept = tokens.keep(ks)
    assert items(kept) == [item[:k] for item, k in zip(items(tokens), ks, strict=True)]
    same(kept, tokens.keep(torch.tensor(ks)))
    assert kept.positions[0] == max(len(item) for item in items(kept)), "filler that no item needs"
    one = tokens.keep(ks[0])
    assert items(one) == [item[: ks[0]] for item in items(tokens)]
    assert one.extent.tolist() == tokens.extent.tolist()


@given(any_tokens(ordered=True, unequal=False), st.data())
def test_keep_twice_is_the_smaller_keep(tokens, data):
    allowed = ends(tokens)
    a, b = sorted(data.draw(st.lists(st.sampled_from(allowed), min_size=2, max_size=2)))
    same(tokens.keep(b).keep(a), tokens.keep(a))
    same(tokens.keep(allowed[-1]), tokens)


@given(any_tokens(ordered=True, unequal=True, batch=3))
def test_what_keep_cuts_off_is_zero(tokens):
    kept = tokens.keep(max(1, tokens.positions[0] - 1)) if not tokens.spec.segments else tokens
    assert not kept.data[~kept.mask].any()


@given(any_tokens(residual=True), st.data())
def test_depth_is_a_prefix_of_every_position(tokens, data):
    least = tokens.spec.depths[0] if tokens.discrete else 1
    d = data.draw(st.sampled_from(tokens.spec.depths if tokens.discrete else range(1, tokens.levels + 1)))
    cut = tokens.depth(d)
    assert torch.equal(cut.data, tokens.data[..., :d])
    assert cut.levels == d
    same(cut.depth(least), tokens.depth(least))


@given(any_tokens())
def test_bits_count_real_positions_and_side(tokens):
    wanted = []
    for size in real_sizes(tokens):
        codes = math.prod(size) * sum(math.log2(v) for v in tokens.spec.vocabulary)
        wanted.append(codes + (3 * 32 + 8 if tokens.side else 0))
    assert tokens.bits().tolist() == pytest.approx(wanted, rel=1e-12)
    assert tokens.bits().dtype == torch.float64
    pixels = [math.prod(row) for row in tokens.extent.tolist()]
    if tokens.spec.modality != "audio":
        assert tokens.bits_per_pixel().tolist() == pytest.approx([w / p for w, p in zip(wanted, pixels, strict=True)])
    else:
        with pytest.raises(ValueError, match=r"stand_in.*bits_per_second"):
            tokens.bits_per_pixel()
    if tokens.spec.modality != "image" and tokens.spec.sample_rate is not None:
        rate = [w * tokens.spec.sample_rate / row[0] for w, row in zip(wanted, tokens.extent.tolist(), strict=True)]
        assert tokens.bits_per_second().tolist() == pytest.approx(rate)
    else:
        with pytest.raises(ValueError, match=r"stand_in.*bits_per_pixel"):
            tokens.bits_per_second()


@given(any_tokens(discrete=False, unequal=False))
def test_bits_of_latents_are_those_of_their_type(tokens):
    half = dataclasses.replace(tokens, data=tokens.data.half(), side={})
    assert half.bits().tolist() == [16.0 * tokens.data[0].numel()] * len(tokens)


@given(any_tokens())
def test_counts_mask_and_sizes_agree(tokens):
    assert tokens.sizes.tolist() == [list(size) for size in real_sizes(tokens)]
    assert tokens.counts.tolist() == [math.prod(size) for size in real_sizes(tokens)]
    assert tokens.mask.shape == tokens.data.shape[:-1]
    for i, size in enumerate(real_sizes(tokens)):
        assert int(tokens.mask[i].sum()) == math.prod(size)
        assert bool(tokens.mask[(i, *(slice(n) for n in size))].all())


# -- sequences ---------------------------------------------------------------------------------------------------------------------


def flattened(tokens, order, joint, pad):
    """`flatten` written as loops over positions and depths."""
    positions, d = tokens.positions, tokens.levels
    first = [sum(tokens.spec.vocabulary[:j]) for j in range(d)] if joint else [0] * d
    grid = list(torch.cartesian_prod(*(torch.arange(n) for n in positions)).view(-1, len(positions)).tolist())
    out = []
    for i, size in enumerate(real_sizes(tokens)):
        rows = []
        for place in grid:
            real = all(p < n for p, n in zip(place, size, strict=True))
            codes = tokens.data[(i, *place)].tolist()
            rows.append([c + f if real else pad for c, f in zip(codes, first, strict=True)])
        if order == "position":
            out.append([c for row in rows for c in row])
        elif order == "level":
            out.append([row[j] for j in range(d) for row in rows])
        else:
            steps = len(rows) + d - 1
            out.append([rows[s - j][j] if 0 <= s - j < len(rows) else pad for s in range(steps) for j in range(d)])
    return out


# Joint ids of five codebooks of 2^62 would not fit 64 bits, so the largest codebooks are left to the tests of a refusal.
def fits_joint(tokens):
    return sum(tokens.spec.vocabulary) < 2**63


@given(any_tokens(), st.sampled_from(ORDERS), st.booleans(), st.sampled_from((-1, -100)))
def test_flatten_equals_loops_and_unflatten_undoes_it(tokens, order, joint, pad):
    if joint and not fits_joint(tokens):
        with pytest.raises(ValueError, match="stand_in"):
            tokens.flatten(order=order, joint=True)
        return
    ids = tokens.flatten(order=order, joint=joint, pad=pad)
    assert ids.dtype == torch.int64
    assert ids.tolist() == flattened(tokens, order, joint, pad)
    same(tokens.unflatten(ids, order=order, joint=joint), tokens)


@given(any_tokens())
def test_joint_vocabularies_do_not_meet(tokens):
    if not fits_joint(tokens):
        return
    ids, first = tokens.offset(), tokens.vocabulary_offsets()
    for j, size in enumerate(tokens.spec.vocabulary):
        column = ids[..., j]
        assert int(column.min()) >= first[j]
        assert int(column.max()) < first[j] + size
        assert first[j] == sum(tokens.spec.vocabulary[:j])


@given(any_tokens(unequal=False))
def test_sequences_with_a_foreign_code_are_refused(tokens):
    ids = tokens.flatten()
    ids[0, -1] = -1
    with pytest.raises(ValueError, match=r"stand_in.*unflatten.*code -1 at depth \d.*0\.\."):
        tokens.unflatten(ids)
    if tokens.levels > 1 and tokens.spec.vocabulary[0] <= 65537 and fits_joint(tokens):
        swapped = tokens.flatten(joint=True).view(len(tokens), -1, tokens.levels).flip(-1).reshape(len(tokens), -1)
        with pytest.raises(ValueError, match=r"stand_in.*unflatten.*at depth"):
            tokens.unflatten(swapped, joint=True)


# -- batches -----------------------------------------------------------------------------------------------------------------------


@given(any_tokens())
def test_items_join_to_the_batch_again(tokens):
    parts = list(tokens)
    assert len(parts) == len(tokens)
    for part, size in zip(parts, real_sizes(tokens), strict=True):
        assert part.positions == size, "an item alone has no filler"
        assert part.lengths is None
    same(Tokens.cat(parts), tokens)


@given(any_tokens(), st.data())
def test_index_selects_items(tokens, data):
    b = len(tokens)
    rows = data.draw(st.lists(st.integers(-b, b - 1), min_size=1, max_size=5))
    wanted = [items(tokens)[i] for i in rows]
    for index in (rows, tuple(rows), torch.tensor(rows), torch.tensor(rows).numpy()):
        assert items(tokens[index]) == wanted
        assert tokens[index].extent.tolist() == [tokens.extent.tolist()[i] for i in rows]
    assert items(tokens[rows[0]]) == wanted[:1]
    assert items(tokens[torch.tensor(rows[0])]) == wanted[:1], "a number without axis keeps the batch axis, as an int does"
    assert items(tokens[torch.tensor(rows).numpy()[0]]) == wanted[:1]
    start, stop = sorted((data.draw(st.integers(0, b)), data.draw(st.integers(0, b))))
    assert items(tokens[start:stop]) == items(tokens)[start:stop]
    chosen = torch.arange(b) % 2 == 0
    for index in (chosen, chosen.numpy(), chosen.tolist()):
        assert items(tokens[index]) == items(tokens)[::2]
    assert len(tokens[[]]) == 0


def test_unequal_grids_join():
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(16,))
    a = Tokens(torch.arange(6).view(1, 2, 3, 1), spec, (20, 30))
    b = Tokens(torch.arange(4).view(1, 4, 1, 1), spec, (40, 10))
    both = Tokens.cat([a, b])
    assert both.positions == (4, 3)
    assert both.sizes.tolist() == [[2, 3], [4, 1]]
    assert items(both) == items(a) + items(b)
    assert both.bits().tolist() == [24.0, 16.0]


def test_index_outside_the_batch_is_an_index_error():
    tokens = Tokens(torch.zeros(2, 3, 1, dtype=torch.int64), TokenSpec(tokenizer="a", modality="image", vocabulary=(4,)), (8, 8))
    for index in (2, -3):
        with pytest.raises(IndexError, match="a batch of 2"):
            tokens[index]


# -- files -------------------------------------------------------------------------------------------------------------------------


@given(any_tokens())
def test_save_and_load_give_the_same_tokens(tmp_path_factory, tokens):
    path = tokens.save(tmp_path_factory.mktemp("tokens") / "x.safetensors")
    loaded = Tokens.load(path)
    same(loaded, tokens)
    assert loaded.spec == tokens.spec
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"], "no temporary file stays"


@given(any_tokens(discrete=False))
def test_latents_keep_their_type_in_files(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("tokens") / "x.safetensors"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = dataclasses.replace(tokens, data=tokens.data.to(dtype))
        same(Tokens.load(cast.save(path)), cast)


def header_of(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length])


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [((2,), "U8"), ((256,), "U8"), ((257,), "U16"), ((65536,), "U16"), ((65537,), "I32"), ((2**31,), "I32"), ((2**31 + 1,), "I64")],
)
def test_codes_are_stored_in_the_narrowest_type(tmp_path, vocabulary, dtype):
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(*vocabulary, 2))
    tokens = Tokens(codes_of((1, 3), spec.vocabulary, 0), spec, (8, 8))
    path = tokens.save(tmp_path / "x")
    assert header_of(path)["data"]["dtype"] == dtype
    assert torch.equal(Tokens.load(path).data, tokens.data)


def test_save_refuses_codes_outside_their_vocabulary(tmp_path):
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,))
    for code in (300, -1):
        tokens = Tokens(torch.full((1, 2, 1), code), spec, (8, 8))
        with pytest.raises(ValueError, match=rf"stand_in.*{code}.*0\.\.255"):
            tokens.save(tmp_path / "x")
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_save_names_a_place_that_is_none(tmp_path):
    tokens = made()
    with pytest.raises(FileNotFoundError, match=r"Tokens of stand_in\.save: no folder .*nowhere"):
        tokens.save(tmp_path / "nowhere" / "x")
    with pytest.raises(IsADirectoryError, match=r"Tokens of stand_in\.save: .* is a folder"):
        tokens.save(tmp_path)
    assert not list(tmp_path.parent.glob("*.part"))


def test_save_takes_side_tensors_that_share_memory(tmp_path):
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,))
    scale = torch.rand(1, 2)
    tokens = Tokens(torch.zeros(1, 2, 1, dtype=torch.int64), spec, (8, 8), side={"a": scale, "b": scale, "c": scale[:, :1]})
    same(Tokens.load(tokens.save(tmp_path / "x")), tokens)


def test_an_empty_batch_can_be_kept(tmp_path):
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,), ordered=True)
    tokens = Tokens(torch.zeros(0, 4, 1, dtype=torch.int64), spec, torch.zeros(0, 2, dtype=torch.int64))
    same(Tokens.load(tokens.save(tmp_path / "x")), tokens)
    assert tokens.keep(2).data.shape == (0, 2, 1)
    assert tokens.bits().shape == (0,)
    assert tokens.flatten().shape == (0, 4)
    assert list(tokens) == []


def write(path, tensors, metadata):
    from safetensors.torch import save_file

    save_file(tensors, path, metadata=metadata)
    return path


def test_load_refuses_what_is_no_file_of_tokens(tmp_path):
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,))
    good = {"data": torch.zeros(1, 2, 1, dtype=torch.uint8), "extent": torch.tensor([[8, 8]])}
    marked = {"format": "zoo-tokens-1", "spec": spec.to_json()}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokens.load(tmp_path / "nowhere")
    text = tmp_path / "text"
    text.write_text("not tensors")
    cut = tmp_path / "cut"
    cut.write_bytes(write(tmp_path / "good", good, marked).read_bytes()[:-3])
    values = json.loads(spec.to_json())
    cases = {
        "text": text,
        "cut": cut,
        "folder": tmp_path,
        "foreign": write(tmp_path / "foreign", good, {"format": "pt"}),
        "no_data": write(tmp_path / "no_data", {"extent": good["extent"]}, marked),
        "no_extent": write(tmp_path / "no_extent", {"data": good["data"]}, marked),
        "no_spec": write(tmp_path / "no_spec", good, {"format": "zoo-tokens-1"}),
        "spec_text": write(tmp_path / "spec_text", good, {**marked, "spec": "{"}),
        "spec_list": write(tmp_path / "spec_list", good, {**marked, "spec": "[]"}),
        "spec_keys": write(tmp_path / "spec_keys", good, {**marked, "spec": json.dumps({**values, "codes": 3})}),
        "spec_short": write(tmp_path / "spec_short", good, {**marked, "spec": json.dumps({"tokenizer": "a"})}),
        "float": write(tmp_path / "float", {**good, "data": torch.full((1, 2, 1), 0.5)}, marked),
        "range": write(tmp_path / "range", {**good, "data": torch.full((1, 2, 1), 300, dtype=torch.int32)}, marked),
    }
    for name, path in cases.items():
        with pytest.raises(ValueError, match=r"Tokens\.load") as caught:
            Tokens.load(path)
        assert path.name in str(caught.value), name
    assert len(Tokens.load(tmp_path / "good")) == 1


# -- what is illegal ---------------------------------------------------------------------------------------------------------------

SPEC = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(8, 16), ordered=True, residual=True)
PLAIN = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(8, 16))
LATENTS = TokenSpec(tokenizer="stand_in", modality="image", channels=4)
LEVELS = (Segment(length=2, stride=2), Segment(length=4, stride=1))
RATES = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(8,), ordered=True, segments=LEVELS)
EXTENT = torch.tensor([[8, 8], [8, 8]])
CODES = torch.zeros(2, 4, 2, dtype=torch.int64)


def made(spec=SPEC, data=CODES, extent=EXTENT, lengths=None, **more):
    return Tokens(data, spec, extent, lengths, **more)


ILLEGAL = {
    "rank": (lambda: made(data=CODES[..., 0]), r"data has shape \(2, 4\).*\(batch, \*positions, depth\)"),
    "code type": (lambda: made(data=CODES.int()), r"dtype torch\.int32.*torch\.int64"),
    "float codes": (lambda: made(data=CODES.float()), r"dtype torch\.float32.*torch\.int64"),
    "too deep": (lambda: made(data=CODES[..., [0, 0, 0]]), r"depth 3.*1\.\.2"),
    "not residual": (lambda: made(spec=PLAIN, data=CODES[..., :1]), r"depth 1.*2"),
    "integer latents": (lambda: made(spec=LATENTS, data=CODES), r"torch\.int64.*floating point"),
    "channels": (lambda: made(spec=LATENTS, data=torch.zeros(2, 4, 3)), r"3 channels.*4"),
    "extent rank": (lambda: made(extent=EXTENT[0]), r"extent has shape \(2,\)"),
    "extent batch": (lambda: made(extent=EXTENT[:1]), r"extent has shape \(1, 2\)"),
    "extent type": (lambda: made(extent=EXTENT.float()), r"extent has dtype torch\.float32.*int64"),
    "extent axes": (lambda: made(extent=EXTENT[:, :1]), r"extent.*1 .*2"),
    "extent sign": (lambda: made(extent=EXTENT * 0), r"extent.*0.*at least 1"),
    "lengths shape": (lambda: made(lengths=torch.tensor([1])), r"lengths has shape \(1,\).*\(2,\)"),
    "lengths axes": (lambda: made(lengths=torch.ones(2, 2, dtype=torch.int64)), r"lengths has shape \(2, 2\)"),
    "lengths type": (lambda: made(lengths=torch.tensor([1.0, 2.0])), r"lengths.*torch\.float32.*int64"),
    "lengths range": (lambda: made(lengths=torch.tensor([1, 5])), r"\[1, 5\].*4"),
    "lengths sign": (lambda: made(lengths=torch.tensor([-1, 4])), r"\[-1, 4\].*4"),
    "side": (lambda: made(side={"scale": torch.zeros(3)}), r"side\['scale'\] holds 3.*2"),
    "side number": (lambda: made(side={"scale": torch.tensor(1.0)}), r"side\['scale'\].*batch of 2"),
    "side list": (lambda: made(side={"scale": [1.0, 2.0]}), r"side\['scale'\].*list.*tensor"),
    "segments": (lambda: made(spec=RATES, data=torch.zeros(2, 5, 1, dtype=torch.int64)), r"5 positions.*\[2, 6\]"),
    "segments grid": (lambda: made(spec=RATES, data=torch.zeros(2, 2, 2, 1, dtype=torch.int64)), r"\(2, 2\).*one axis"),
    "keep unordered": (lambda: made(spec=PLAIN).keep(1), r"keep.*not ordered"),
    "keep 0": (lambda: made().keep(0), r"keep.*0 is outside 1\.\.4"),
    "keep 5": (lambda: made().keep(5), r"keep.*5 is outside 1\.\.4"),
    "keep list": (lambda: made().keep([1, 9]), r"keep.*9.* outside 1\.\.4"),
    "keep count": (lambda: made().keep([1, 2, 3]), r"keep.*shape \(3,\).*batch of 2"),
    "keep float": (lambda: made().keep(2.7), r"keep.*2\.7.*int"),
    "keep floats": (lambda: made().keep([1.5, 2.5]), r"keep.*int"),
    "keep bool": (lambda: made().keep(True), r"keep.*True.*int"),
    "keep text": (lambda: made().keep("2"), r"keep.*'2'.*int"),
    "keep inside": (lambda: made(spec=RATES, data=torch.zeros(2, 6, 1, dtype=torch.int64)).keep(3), r"keep.*3.*\[2, 6\]"),
    "depth plain": (lambda: made(spec=PLAIN).depth(1), r"depth.*levels of refinement"),
    "depth 0": (lambda: made().depth(0), r"depth.*0 is outside 1\.\.2"),
    "depth 3": (lambda: made().depth(3), r"depth.*3 is outside 1\.\.2"),
    "depth float": (lambda: made().depth(1.5), r"depth.*1\.5.*int"),
    "flatten order": (lambda: made().flatten(order="frame"), r"flatten.*'frame'.*position, level, delay"),
    "flatten latents": (lambda: made(spec=LATENTS, data=torch.zeros(2, 4, 4)).flatten(), r"flatten.*latents"),
    "flatten joint": (lambda: made(spec=LATENTS, data=torch.zeros(2, 4, 4)).flatten(joint=True), r"flatten.*latents"),
    "offset latents": (lambda: made(spec=LATENTS, data=torch.zeros(2, 4, 4)).offset(), r"offset.*latents"),
    "unflatten order": (lambda: made().unflatten(CODES.flatten(1), order="x"), r"unflatten.*'x'.*position, level, delay"),
    "unflatten shape": (lambda: made().unflatten(CODES.flatten(1)[:, 1:]), r"unflatten.*\(2, 7\).*\(2, 8\)"),
    "unflatten float": (lambda: made().unflatten(CODES.flatten(1).float()), r"unflatten.*torch\.float32.*int64"),
    "unflatten latents": (
        lambda: made(spec=LATENTS, data=torch.zeros(2, 4, 4)).unflatten(torch.zeros(2, 16)), r"unflatten.*latents"
    ),
    "codes": (lambda: made(data=CODES + 8).check_codes(), r"code 8 at depth 0.*0\.\.7"),
    "NaN": (lambda: made(spec=LATENTS, data=torch.full((2, 4, 4), math.nan)).check_codes(), r"NaN"),
    "cat nothing": (lambda: Tokens.cat([]), r"cat.*empty"),
    "cat other": (lambda: Tokens.cat([made(), made(spec=dataclasses.replace(SPEC, tokenizer="other"))]), r"cat.*other.*stand_in"),
    "cat depth": (lambda: Tokens.cat([made(), made().depth(1)]), r"cat.*depth"),
    "cat grid": (lambda: Tokens.cat([made(), made(data=CODES[:, :, None])]), r"cat.*grid"),
    "cat side": (lambda: Tokens.cat([made(side={"a": torch.zeros(2)}), made()]), r"cat.*side.*'a'"),
    "cat type": (
        lambda: Tokens.cat([made(spec=LATENTS, data=torch.zeros(2, 4, 4, dtype=d)) for d in (torch.float16, torch.float32)]),
        r"cat.*float16.*float32",
    ),
    "spec both": (lambda: TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(2,), channels=3), r"either vocabulary"),
    "spec none": (lambda: TokenSpec(tokenizer="stand_in", modality="image"), r"either vocabulary"),
    "spec size": (lambda: TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(0,)), r"vocabulary=\(0,\).*at least 1"),
    "spec channels": (lambda: TokenSpec(tokenizer="stand_in", modality="image", channels=0), r"channels=0.*at least 1"),
    "spec modality": (lambda: TokenSpec(tokenizer="stand_in", modality="text", channels=1), r"'text'.*image, video, audio"),
    "spec latents": (lambda: dataclasses.replace(LATENTS, latents="scaled"), r"'scaled'.*normalised, raw"),
    "segment": (lambda: Segment(length=0, stride=1), r"length=0.*at least 1"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_is_illegal_is_refused(case):
    make, words = ILLEGAL[case]
    with pytest.raises(ValueError, match=words) as caught:
        make()
    if case not in ("cat nothing", "segment"):
        assert "stand_in" in str(caught.value), "the message names the tokenizer"


# -- a value -----------------------------------------------------------------------------------------------------------------------


def test_tokens_cannot_be_changed():
    side = {"scale": torch.zeros(2)}
    tokens = made(side=side)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.data = CODES
    side["later"] = torch.zeros(2)
    assert set(tokens.side) == {"scale"}


def test_one_extent_serves_all_items():
    assert made(extent=(8, 9)).extent.tolist() == [[8, 9], [8, 9]]
    assert made(extent=[(8, 9), (4, 5)]).extent.tolist() == [[8, 9], [4, 5]]


def test_tokens_travel_between_processes():
    tokens = made(lengths=torch.tensor([1, 4]), side={"scale": torch.rand(2)})
    same(pickle.loads(pickle.dumps(tokens)), tokens)
    same(copy.deepcopy(tokens), tokens)


def test_text_says_what_it_is():
    assert repr(made(lengths=torch.tensor([1, 4]))) == "Tokens(stand_in, (2, 4, 2), vocabulary (8, 16), lengths [1, 4])"
    assert "torch.float32 latents" in repr(made(spec=LATENTS, data=torch.zeros(2, 4, 4)))


def test_a_list_of_sizes_is_as_good_as_a_tuple():
    assert dataclasses.replace(SPEC, vocabulary=[8, 16]) == SPEC
    assert hash(dataclasses.replace(SPEC, vocabulary=[8, 16])) == hash(SPEC)


def test_moving_keeps_everything():
    tokens = made(lengths=torch.tensor([1, 4]), side={"scale": torch.rand(2)})
    same(tokens.to("cpu"), tokens)
