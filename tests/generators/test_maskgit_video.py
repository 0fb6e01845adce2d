"""MaskGIT over video: rounds of masks, text, clips that are held fixed, stories, and the critic."""

import math

import pytest
import torch

import zoo
import zoo.generators as generators
from tests.generators.text_tower import write_tower
from zoo.generators.maskgit_video import Scene
from zoo.generators.text import TextTower

SIZES = dict(width=16, depth_blocks=1, heads=2, head=8, bias_width=8)


def randomize(gen, scale=0.4):
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gen.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * scale)
    return gen.eval()


@pytest.fixture
def clip(made_codes):
    def make(steps=3, **more):
        frames = 1 + 2 * (steps - 1)
        return made_codes((steps, 2, 2), (9,), modality="video", extent=(frames, 8, 8), sample_rate=8.0, **more)

    return make


def words(b=2, m=4, channels=6, seed=0):
    return torch.randn(b, m, channels, generator=torch.Generator().manual_seed(seed))


def shown(gen, **options):
    """Ids that the network sees in each round of a sample."""
    seen = []
    hook = gen.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    out = gen.sample(**options)
    hook.remove()
    return seen, out


def test_masks_follow_the_cosine_and_kept_codes_stay(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), **SIZES))
    seen, out = shown(gen, n=3, steps=6)
    assert [int((ids == 9).sum(1)[0]) for ids in seen] == [12, *(round(12 * math.cos(math.pi * s / 12)) for s in range(1, 6))]
    for earlier, later in zip(seen, [*seen[1:], out.data.flatten(1)], strict=True):
        kept = earlier != 9
        assert torch.equal(earlier[kept], later[kept])


def test_the_critic_chooses_what_is_drawn_again(clip):
    """A critic that doubts the codes by their value: the round after shows the codes that it trusts."""
    gen = randomize(generators.create("cvivit", tokens=clip(), critic="shared", **SIZES))
    gen.doubts = lambda ids, grid, labels: ids.float()
    seen, _ = shown(gen, n=1, steps=3, critic_noise=0.0)
    rest = seen[1][seen[1] != 9]
    assert rest.numel() == 12 - round(12 * math.cos(math.pi / 6))
    first = gen.fill(
        torch.zeros(1, 0, dtype=torch.int64), (3, 2, 2), torch.tensor([0]), 1.0, steps=1, temperature=0.0, noise=lambda step: None
    )
    assert first.shape == (1, 12)
    plain = generators.create("cvivit", tokens=clip(), **SIZES).eval()
    with pytest.raises(ValueError, match="critic='none'"):
        plain.doubts(torch.zeros(1, 12, dtype=torch.int64), (3, 2, 2), torch.tensor([0]))


def test_a_separate_critic_leaves_the_network_alone(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), critic="separate", **SIZES))
    plain = generators.create("cvivit", tokens=clip(), **SIZES).eval()
    plain.load_state_dict({key: value for key, value in gen.state_dict().items() if not key.startswith("critic")})
    gen.loss(clip()).backward()
    plain.loss(clip()).backward()
    found = dict(gen.named_parameters())
    assert all(torch.equal(parameter.grad, found[name].grad) for name, parameter in plain.named_parameters())
    assert bool(gen.critic_network.embedding.weight.grad.abs().sum() > 0)


def test_the_critic_learns_to_see_replaced_codes(clip):
    torch.manual_seed(0)
    tokens = clip(b=2)
    gen = generators.create("cvivit", tokens=tokens, critic="shared", **SIZES).train()
    optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-2)
    for step in range(250):
        loss = gen.loss(tokens, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = tokens.data.flatten(1)
    wrong = torch.zeros_like(ids, dtype=torch.bool)
    wrong[:, 4] = True
    changed = torch.where(wrong, (ids + 4) % 9, ids)
    doubts = gen.eval().doubts(changed, (3, 2, 2), torch.zeros(2, dtype=torch.int64))
    assert float(doubts[wrong].detach().min()) > float(doubts[~wrong].detach().mean())


def test_text_is_a_condition(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), text_width=6, **SIZES))
    tokens, text = clip(), words()
    assert not torch.equal(gen.loss(tokens, text), gen.loss(tokens, words(seed=1)))
    padded = torch.cat([text, torch.zeros(2, 3, 6)], 1)
    torch.testing.assert_close(gen.loss(tokens, padded), gen.loss(tokens, text), rtol=0, atol=1e-5)
    torch.testing.assert_close(gen.loss(tokens), gen.loss(tokens, torch.zeros(2, 5, 6)), rtol=0, atol=1e-5)
    assert len(gen.sample(text, steps=2, guidance=3.0)) == 2
    same = gen.sample(text[:1], n=2, seed=[4, 4], steps=2)
    assert torch.equal(same.data[0], same.data[1])
    for wrong, message in (
        (words(channels=5), r"shape \(2, 4, 5\)"),
        (words(b=3), r"shape \(3, 4, 6\)"),
        (3, "condition is a int"),
        (text * math.inf, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            gen.loss(tokens, wrong)
    with pytest.raises(ValueError, match="0 with text_width"):
        generators.create("cvivit", tokens=clip(), text_width=6, classes=3, **SIZES)


def test_text_is_left_out_in_training(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), text_width=6, label_dropout=0.999999, **SIZES)).train()
    losses = [gen.loss(clip(), words(seed=s), generator=torch.Generator().manual_seed(3)) for s in (0, 1)]
    assert torch.equal(*losses)


def test_pictures_and_shorter_clips_train_and_come_out(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), **SIZES))
    for steps, frames in ((1, 1), (2, 3), (3, 5)):
        assert bool(gen.loss(clip(steps)).isfinite())
        out = gen.sample(frames=frames, steps=2)
        assert out.data.shape == (1, steps, 2, 2, 1)
        assert out.extent.tolist() == [[frames, 8, 8]]
    for frames in (0, 2, 7):
        with pytest.raises(ValueError, match=rf"frames={frames}\. Allowed: 1 \+ k \* 2, up to 5"):
            gen.sample(frames=frames)


def test_what_a_clip_begins_with_stays(clip):
    gen = randomize(generators.create("cvivit", tokens=clip(), **SIZES))
    prime = clip(2)
    out = gen.sample(n=2, prime=prime, steps=3)
    assert torch.equal(out.data[:, :2], prime.data)
    assert not torch.equal(out.data[:, 2], gen.sample(n=2, prime=clip(2, seed=5), steps=3).data[:, 2])
    with pytest.raises(ValueError, match="less than 3 steps"):
        gen.sample(n=2, prime=clip(3))


@pytest.fixture
def filmed(parity):
    """The fixture's generator and the tokenizer that it was made for."""
    tok = zoo.load(parity("cvivit", "vq_cosine").folder, family="cvivit")
    gen = generators.load(parity("cvivit", "maskgit_text").folder, family="cvivit").bind(tok)
    return gen, tok


def test_a_story_is_as_long_as_its_scenes(filmed):
    """Window of 21 frames: the second scene, of 24, needs two pieces; a scene to come changes nothing before it."""
    gen, tok = filmed
    first, second, third = (words(b=1, channels=20, seed=s) for s in range(3))
    scenes = [Scene(frames=5, condition=first), Scene(frames=24, condition=second)]
    video = gen.story(tok, scenes, n=2, seed=1, steps=2, temperature=20.0)
    assert video.shape == (2, 3, 29, 32, 32)
    assert not torch.equal(video[0], video[1])
    assert torch.equal(gen.story(tok, scenes, n=2, seed=1, steps=2, temperature=20.0), video)
    other = gen.story(tok, [scenes[0], Scene(frames=24, condition=third)], n=2, seed=1, steps=2, temperature=20.0)
    assert torch.equal(other[:, :, :5], video[:, :, :5])
    assert not torch.equal(other[:, :, 5:], video[:, :, 5:])


def test_a_story_of_prompts(filmed, tmp_path):
    """Scenes may be told in words; a prompt for all videos is embedded as its scene needs it."""
    gen, tok = filmed
    gen.use_text_tower(TextTower.load(write_tower(tmp_path, width=20)))
    told = [Scene(frames=5, condition="a red apple"), Scene(frames=8, condition="two boats")]
    video = gen.story(tok, told, n=2, seed=1, steps=2, guidance=2.0)
    shown = [Scene(frames=scene.frames, condition=gen.encode_text(scene.condition)) for scene in told]
    assert torch.equal(gen.story(tok, shown, n=2, seed=1, steps=2, guidance=2.0), video)
    other = [told[0], Scene(frames=8, condition="a tree")]
    assert not torch.equal(gen.story(tok, other, n=2, seed=1, steps=2, guidance=2.0)[:, :, 5:], video[:, :, 5:])


def test_a_story_goes_on_from_the_last_frames(filmed):
    gen, tok = filmed
    held = []
    encode = tok.encode
    tok.encode = lambda x: held.append(x) or encode(x)
    video = gen.story(tok, [Scene(frames=9), Scene(frames=4)], steps=2, overlap=5)
    assert len(held) == 1
    assert torch.equal(held[0], video[:, :, 4:9].clamp(-1, 1))


@pytest.mark.parametrize(
    ("scenes", "more", "message"),
    [
        ([], {}, "scenes is empty"),
        ([Scene(frames=4)], {}, r"scene 0 has frames=4\. Allowed: 1 \+ k \* 4"),
        ([Scene(frames=5), Scene(frames=5)], {}, r"scene 1 has frames=5\. Allowed: k \* 4"),
        ([Scene(frames=5)], {"overlap": 3}, r"overlap=3\. Allowed: 1 \+ k \* 4, below 21"),
        ([Scene(frames=5)], {"frames": 5}, "set by the scenes"),
    ],
)
def test_refused_stories(filmed, scenes, more, message):
    gen, tok = filmed
    with pytest.raises(ValueError, match=message):
        gen.story(tok, scenes, **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"places": 3}, "places=3"), ({"critic": "stern"}, "critic='stern'"), ({"embedding_gradient": 0.0}, "embedding_gradient=0")],
)
def test_refused_configurations(clip, change, message):
    with pytest.raises(ValueError, match=message):
        generators.create("cvivit", tokens=clip(), **{**SIZES, **change})
