"""VidTok against tensors of the public implementation (see the READMEs in tests/parity/vidtok), its stream and its refusals."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import zoo
from tests.video.checks import close
from zoo.layers.causal_conv import Memory
from zoo.tokens import Tokens
from zoo.video.vidtok import VidTok, VidTokConfig

CASES = ("kl_causal_488_v1_0", "fsq_causal_488_v1_1", "fsq_causal_41616_v1_0")
CLIPS = [(case, clip) for case in CASES for clip in ("image", "video")]


@pytest.fixture(scope="module")
def public(parity):
    """Give the case and its tokenizer in float64: layer norms over 4 channels make much of rounding."""
    made = {}

    def get(name):
        if name not in made:
            case = parity("vidtok", name)
            made[name] = case.io, zoo.load(case.folder, family="vidtok", dtype=torch.float64)
        return made[name]

    return get


@pytest.mark.parametrize(("name", "clip"), CLIPS)
def test_the_encoder(public, name, clip):
    io, tok = public(name)
    h = tok.moments(io[f"{clip}/input"].double())
    close(h.permute(0, 4, 1, 2, 3), io[f"{clip}/encoder_out"].double(), 1e-5)
    data = tok.encode(io[f"{clip}/input"].double()).data
    if tok.info.discrete:
        assert torch.equal(data[..., 0], io[f"{clip}/codes"])
        close(tok.quantizer.bound(h.float()), io[f"{clip}/bounded"])
        close(tok.quantizer.decode(data), io[f"{clip}/quantized"].permute(0, 2, 3, 4, 1))
    else:
        close(data.permute(0, 4, 1, 2, 3), io[f"{clip}/mode"].double(), 1e-5)


@pytest.mark.parametrize(("name", "clip"), CLIPS)
def test_the_decoder(public, name, clip):
    """From the fixture's own latents: where 4 channels are nearly equal, 1e-7 in them moves a pixel by 1e-4."""
    io, tok = public(name)
    z = io[f"{clip}/quantized" if tok.info.discrete else f"{clip}/mode"].double().permute(0, 2, 3, 4, 1)
    close(tok.decode_vectors(z), io[f"{clip}/reconstruction"].double())
    if not tok.info.discrete:
        sample = io[f"{clip}/sample"].double().permute(0, 2, 3, 4, 1)
        close(tok.decode_vectors(sample), io[f"{clip}/reconstruction_of_sample"].double())


@pytest.mark.parametrize(("name", "clip"), CLIPS)
def test_the_numbers_in_float32(parity, name, clip):
    """Codes exactly; pixels as near as layer norms over 4 channels allow (the fixtures name up to 1e-3)."""
    case = parity("vidtok", name)
    tok = zoo.load(case.folder, family="vidtok")
    tokens = tok.encode(case.io[f"{clip}/input"])
    if tok.info.discrete:
        assert torch.equal(tokens.data[..., 0], case.io[f"{clip}/codes"])
    close(tok.decode(tokens), case.io[f"{clip}/reconstruction"], 1e-3)


@pytest.mark.parametrize("clip", ["image", "video"])
def test_the_distribution(public, clip):
    io, tok = public(CASES[0])
    mean, logvar = tok.moments(io[f"{clip}/input"].double()).permute(0, 4, 1, 2, 3).chunk(2, 1)
    logvar = logvar.clamp(-30, 20)
    close(mean + (logvar / 2).exp() * io[f"{clip}/noise"], io[f"{clip}/sample"].double(), 1e-5)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    assert float(divergence / len(mean)) == pytest.approx(float(io[f"{clip}/kl_loss"]), rel=1e-5)


def test_sampling_adds_the_noise_of_the_distribution(public):
    io, tok = public(CASES[0])
    x = io["video/input"].double()
    h = tok.moments(x)
    noise = torch.randn(h[..., :4].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    close(tok.encode(x, sample=True, seed=7).data, h[..., :4] + (h[..., 4:].clamp(-30, 20) / 2).exp() * noise, 1e-12)


def test_frames_filled_up_in_front_as_the_release_does(public):
    """6 frames: the release puts two copies before them where we put three before and three behind."""
    io, tok = public("fsq_causal_488_v1_1")
    x = io["odd/input"].double()
    frames = torch.cat([x[:, :, :1], x[:, :, :1], x], 2).permute(0, 2, 3, 4, 1)
    h = tok.encoder(frames, Memory())
    close(h.permute(0, 4, 1, 2, 3), io["odd/encoder_out"].double(), 1e-5)
    close(tok.quantizer.bound(h.float()), io["odd/bounded"])
    codes = tok.quantizer.encode(h)
    assert torch.equal(codes[..., 0], io["odd/codes"])
    z = tok.quantizer.decode(codes)
    close(z, io["odd/quantized"].permute(0, 2, 3, 4, 1))
    close(tok.decode_vectors(z.double())[:, :, -3:], io["odd/reconstruction"].double()[:, :, -3:])
    memory = Memory()
    y = [tok.decoder(z[:, :1].double(), memory), tok.decoder(z[:, 1:].double(), memory)]
    memory.ending = True
    y.append(tok.decoder(z[:, :0].double(), memory))
    close(torch.cat(y, 1).permute(0, 4, 1, 2, 3)[:, :, 2:], io["odd/reconstruction"].double())


def test_the_chunks_of_the_release(public):
    """Its encoder in chunks is that of the whole clip; its decoder is not, and ours is."""
    io, tok = public("fsq_causal_488_v1_1")
    close(tok.moments(io["video/input"].double()).permute(0, 4, 1, 2, 3), io["chunked/encoder_out"].double(), 1e-5)
    y = torch.cat(list(tok.stream().decode_all(parts_of(tok.encode(io["video/input"].double()), [1, 2, 2]))), 2)
    close(y, io["video/reconstruction"].double())
    assert float((y - io["chunked/reconstruction"]).abs().max()) > 0.05


# -- the stream --------------------------------------------------------------------------------------------------------------------


def parts_of(tokens, counts):
    """Stretches of so many positions."""
    parts, start = [], 0
    length, step = int(tokens.extent[0, 0]), 4
    for n in counts:
        covered = [min(length, 1 + (k - 1) * step) if k else 0 for k in (start, start + n)]
        extent = tokens.extent.clone()
        extent[:, 0] = covered[1] - covered[0]
        parts.append(Tokens(tokens.data[:, start : start + n], tokens.spec, extent))
        start += n
    return parts


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_the_whole_to_the_bit(parity, name):
    case = parity("vidtok", name)
    tok = zoo.load(case.folder, family="vidtok")
    x = torch.cat([case.io["video/input"], case.io["video/input"].flip(2)], 2)[:, :, :15]
    whole = tok.encode(x)
    y = tok.decode(whole)
    assert y.shape == x.shape
    for sizes in ([15], [1] * 15, [2, 7, 1, 5], [6, 9]):
        parts = list(tok.stream().encode_all(x.split(sizes, 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert torch.equal(joined.extent, whole.extent)
        assert torch.equal(torch.cat(list(tok.stream().decode_all(parts)), 2), y)
    for counts in ([5], [1] * 5, [2, 3]):
        assert torch.equal(torch.cat(list(tok.stream().decode_all(parts_of(whole, counts))), 2), y)


def test_the_decoder_is_behind_by_its_lookahead_and_no_more(parity):
    for name, ahead in ((CASES[0], 0), (CASES[1], 3)):
        tok = zoo.load(parity("vidtok", name).folder, family="vidtok")
        assert tok.info.lookahead_frames == ahead
        assert tok.info.causal == (ahead == 0)
        tokens = tok.encode(parity("vidtok", name).io["video/input"])
        stream, given = tok.stream(), []
        for part in parts_of(tokens, [1] * 5):
            y = stream.decode(part)
            given.append(0 if y is None else y.shape[2])
        assert given[0] == 1, "the first frame stands alone and waits for nothing"
        assert sum(given) == 17 - ahead
        rest = stream.decode(None, last=True)
        assert (0 if rest is None else rest.shape[2]) == ahead


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_a_clip_of_one_frame(parity, name):
    tok = zoo.load(parity("vidtok", name).folder, family="vidtok")
    x = parity("vidtok", name).io["video/input"]
    assert torch.equal(tok.encode(x[:, :, :1]).data, tok.encode(x).data[:, :1])
    assert torch.equal(tok(x[:, :, :1]), tok.decode(parts_of(tok.encode(x), [1])[0]))


def test_a_stream_keeps_the_same_whatever_its_length(parity):
    tok = zoo.load(parity("vidtok", CASES[1]).folder, family="vidtok")
    stream, sizes = tok.stream(), []
    for i in range(20):
        tokens = stream.encode(torch.full((1, 3, 4, 16, 16), i / 20))
        if tokens is not None:
            stream.decode(tokens)
        held = (stream.encoder.held, stream.decoder.held)
        sizes.append((stream.encoder.memory.size(), stream.decoder.memory.size(), *(0 if h is None else h.numel() for h in held)))
    assert len(set(sizes[3:])) == 1
    for memory in (stream.encoder.memory, stream.decoder.memory):
        for value in memory.kept.values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), "a view keeps more alive than it shows"


# -- sizes, time and other kinds ---------------------------------------------------------------------------------------------------


def small(**more):
    torch.manual_seed(0)
    plain = dict(width=8, multipliers=(1, 1, 1, 1), blocks=1, image_size=16)
    tok = VidTok(VidTokConfig(**{**plain, **more})).eval().requires_grad_(False)
    for parameter in tok.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return tok


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 6, 8, 9])
@pytest.mark.parametrize("time", [(1,), (1, 2), (0, 1, 2)])
def test_any_number_of_frames_comes_back(frames, time):
    up = {1: (2,), 2: (1, 2), 3: (1, 2, 3)}[len(time)]
    f = 2 ** len(time)
    for linear in (False, True):
        later = dict(padding="repeat", interpolation="linear") if linear else {}
        tok = small(time_down=time, time_up=up, **later)
        x = torch.rand(1, 3, frames, 9, 17, generator=torch.Generator().manual_seed(frames)) * 2 - 1
        tokens = tok.encode(x)
        assert tokens.positions == (1 + -(-(frames - 1) // f), 2, 3)
        assert tok.decode(tokens).shape == x.shape
        assert tok.info.lookahead_frames == (f - 1 if linear else 0)


@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_lookahead_is_what_the_entry_says_and_not_less(ahead):
    time = {1: (1,), 3: (1, 2), 7: (0, 1, 2)}[ahead]
    up = {1: (2,), 3: (1, 2), 7: (1, 2, 3)}[ahead]
    tok = small(time_down=time, time_up=up, padding="repeat", interpolation="linear").double()
    x = torch.rand(1, 3, 1 + 3 * (ahead + 1), 8, 8, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    tokens = tok.encode(x)
    changed = tokens.data.clone()
    changed[:, 2:] += 1
    a, b = tok.decode(tokens), tok.decode(replace(tokens, data=changed))
    cut = tok._span(2)
    assert torch.equal(a[:, :, : cut - ahead], b[:, :, : cut - ahead])
    assert not torch.equal(a[:, :, : cut - ahead + 1], b[:, :, : cut - ahead + 1])


def test_a_model_that_is_not_causal():
    """Frames see both neighbours, zeros stand around the clip; the whole against torch's 3-D convolution."""
    tok = small(causal=False)
    assert (tok.info.causal, tok.info.streaming, tok.info.lookahead_frames) == (False, False, None)
    for frames in (1, 3, 4, 5, 16):
        x = torch.rand(1, 3, frames, 8, 8, generator=torch.Generator().manual_seed(frames)) * 2 - 1
        tokens = tok.encode(x)
        assert tokens.positions[0] == -(-frames // 4)
        assert tok.decode(tokens).shape == x.shape
    conv = tok.encoder.conv_in
    frames = x.permute(0, 2, 3, 4, 1)
    wanted = F.conv3d(x, conv.weight, conv.bias, padding=1).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(conv(frames, Memory()), wanted)
    down = tok.encoder.down_temporal[1].downsample
    h = torch.rand(1, 8, 4, 3, 3)
    padded = F.pad(h, (0, 0, 0, 0, 0, 1))
    alpha = down.mix_factor.sigmoid()
    mean = F.avg_pool3d(padded, (3, 1, 1), stride=(2, 1, 1))
    wanted = alpha * mean + (1 - alpha) * F.conv3d(padded, down.conv.weight, down.conv.bias, stride=(2, 1, 1), padding=(0, 1, 1))
    torch.testing.assert_close(down(h.permute(0, 2, 3, 4, 1), Memory()), wanted.permute(0, 2, 3, 4, 1))
    with pytest.raises(ValueError, match=r"vidtok\.stream: this tokenizer needs the whole signal"):
        tok.stream()


def test_no_table_of_tokens_by_codes():
    """512 positions with 8^6 codes: the release would make 134 million floats."""
    tok = small(latent_channels=6, levels=(8,) * 6, multipliers=(1,), space_down=(), space_up=(), time_down=(), time_up=())
    x = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    with torch.profiler.profile(profile_memory=True) as profile:
        tok.decode(tok.encode(x))
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4e6


# -- reading the release -----------------------------------------------------------------------------------------------------------


def test_a_lightning_checkpoint_with_training_losses(parity, tmp_path):
    """As the release stores it: a pickle whose state_dict also holds the losses."""
    from safetensors.torch import load_file

    from zoo.checkpoint import load_strict, read_tensors

    case = parity("vidtok", CASES[0])
    tensors = load_file(case.weights)
    path = tmp_path / "model.ckpt"
    losses = {"loss.logvar": torch.zeros(1), "loss.discriminator.main.0.weight": torch.ones(2)}
    torch.save({"epoch": 1, "state_dict": {**tensors, **losses}}, path)
    config = VidTok.from_public(case.config, {})
    tok = VidTok(config)
    load_strict(tok, VidTok.rename_public(read_tensors(path, allow_pickle=True, key="state_dict"), config), name="vidtok")
    assert torch.equal(tok.encoder.conv_in.weight, tensors["encoder.conv_in.conv.weight"])
    with pytest.raises(ValueError, match=r"1 unexpected: lost\.logvar"):
        load_strict(tok, VidTok.rename_public({**tensors, "lost.logvar": torch.zeros(1)}, config), name="vidtok")


def test_the_catalog_has_the_sizes_of_the_release():
    """Names say the compression and the channels; 69 + 88 and 90 + 109 million parameters, as counted with the public code."""
    entries = [entry for entry in zoo.find(family="vidtok") if entry.source]
    assert len(entries) == 23
    for e in entries:
        kind, _, compression, size = e.name.split("_")[1:5]
        assert "".join(map(str, e.downsample)) == compression
        assert (e.codebook_size if kind == "fsq" else e.channels) == int(size.removesuffix("chn"))
        assert e.weights.file.endswith(f"/{e.name}.ckpt")
        assert ("v1_1" in e.name) == bool(e.lookahead_frames) == ("vidtok_v1_1/" in e.weights.file)
        if compression in ("488", "41616"):
            assert round(e.parameters / 1e6) in ((157, 158) if compression == "488" else (199,))


def test_a_model_without_a_fixture_has_the_parameters_of_the_public_class():
    from diffusers import AutoencoderVidTok

    given = dict(ch=8, num_res_blocks=1, z_channels=4)
    cases = [
        (dict(space_down=(1, 2), space_up=(1, 2)), dict(spatial_ds=[1, 2], spatial_us=[1, 2])),
        (dict(time_down=(1,), time_up=(2,)), dict(tempo_ds=[1], tempo_us=[2])),
        (dict(causal=False), dict(is_causal=False)),
    ]
    for ours, theirs in cases:
        public = AutoencoderVidTok(**given, **theirs)
        tok = VidTok(VidTokConfig(width=8, blocks=1, **ours))
        renamed = VidTok.rename_public(public.state_dict(), tok.config)
        assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in tok.state_dict().items()}


@pytest.mark.parametrize("kind", ["not causal", "linear"])
def test_whole_clips_equal_those_of_the_public_class(kind):
    from diffusers import AutoencoderVidTok

    from zoo.checkpoint import load_strict

    torch.manual_seed(3)
    public = AutoencoderVidTok(ch=16, num_res_blocks=1, z_channels=4, is_causal=kind == "linear").eval().double()
    later = dict(padding="repeat", interpolation="linear") if kind == "linear" else dict(causal=False)
    tok = VidTok(VidTokConfig(width=16, blocks=1, **later)).eval().requires_grad_(False).double()
    load_strict(tok, VidTok.rename_public(public.state_dict(), tok.config), name="vidtok")
    x = torch.rand(1, 3, 17 if kind == "linear" else 16, 16, 16, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    torch.testing.assert_close(tok(x), public(x, sample_posterior=False).sample.detach(), rtol=1e-5, atol=1e-5)


REFUSED = {
    "encoder": (lambda c: c["model"]["params"]["encoder_config"].update(target="os.system"), "the encoder is a 'os.system'"),
    "regularizer": (lambda c: c["model"]["params"]["regularizer_config"].update(target="x"), "the regularizer is a 'x'"),
    "norm": (lambda c: c["model"]["params"]["encoder_config"]["params"].update(norm_type="groupnorm"), "norm_type"),
    "double_z": (lambda c: c["model"]["params"]["encoder_config"]["params"].update(double_z=False), "double_z=False"),
    "interpolation": (
        lambda c: c["model"]["params"]["encoder_config"]["params"].update(interpolation_mode="area"),
        "interpolation_mode='area'",
    ),
    "missing": (lambda c: c["model"]["params"].pop("encoder_config"), "lacks 'encoder_config'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_is_not_known(parity, case):
    config = json.loads(json.dumps(parity("vidtok", CASES[0]).config))
    change, words = REFUSED[case]
    change(config)
    with pytest.raises(ValueError, match=words):
        VidTok.from_public(config, {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(levels=(8, 8)), "levels"),
        (dict(time_down=(3,)), "time_down"),
        (dict(time_up=(1,)), "time_up"),
        (dict(causal=False, interpolation="linear"), "causal"),
        (dict(padding="reflect"), "padding"),
    ],
)
def test_a_configuration_that_makes_no_sense(values, words):
    with pytest.raises(ValueError, match=words):
        VidTokConfig.from_dict(values)
