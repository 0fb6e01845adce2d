"""Token-Shuffle: the windows, what a window sees, the plain model at s = 1, and counted steps and FLOPs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo.generators as generators
from zoo.generators.token_shuffle import shuffle, unshuffle

SIZES = dict(width=16, depth_blocks=2, heads=2, hidden_multiple=8, classes=3)


def randomize(gen):
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gen.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.5)
    return gen.eval()


def test_windows_of_a_small_grid():
    raster = torch.arange(16).view(1, 4, 4, 1)
    assert shuffle(raster, 2)[..., 0].tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    channels = 2 * raster + torch.arange(2)
    assert shuffle(channels, 2).flatten(2)[0, :2].tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("positions", [(4, 4), (8, 4), (4, 12)])
def test_unshuffle_undoes_shuffle(window, positions):
    x = torch.arange(2 * positions[0] * positions[1] * 3).view(2, *positions, 3)
    assert torch.equal(unshuffle(shuffle(x, window), window, positions), x)


def test_windows_that_do_not_fit(made_codes):
    with pytest.raises(ValueError, match="6 x 4 with window=4"):
        shuffle(torch.zeros(1, 6, 4, 1), 4)
    with pytest.raises(ValueError, match="window=4"):
        generators.create("token_shuffle", tokens=made_codes((6, 4), (5,)), **{**SIZES, "window": 4})


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_sees_the_windows_before_it(made_codes, window):
    tokens = made_codes((4, 4), (7, 5), b=1)
    gen = randomize(generators.create("token_shuffle", tokens=tokens, window=window, **SIZES))
    steps = gen.to_steps(tokens.data)
    before = gen.code_losses(steps, torch.tensor([1]))
    for t in range(steps.shape[1] - 1):
        changed = steps.clone()
        changed[:, t, 0] = (changed[:, t, 0] + 1) % 5
        after = gen.code_losses(changed, torch.tensor([1]))
        assert torch.equal(before[:, :t], after[:, :t])
        assert torch.equal(before[:, t, 1:], after[:, t, 1:])
        assert bool((before[:, t + 1 :] != after[:, t + 1 :]).any(-1).all())


def test_a_window_of_one_is_the_plain_model(made_codes):
    tokens = made_codes((4, 4), (7, 5))
    plain = randomize(generators.create("autoregressive", tokens=tokens, **SIZES))
    shuffled = generators.create("token_shuffle", tokens=tokens, window=1, **SIZES).eval()
    shuffled.load_state_dict(plain.state_dict())
    assert torch.equal(plain.loss(tokens, [0, 2]), shuffled.loss(tokens, [0, 2]))
    options = dict(n=3, seed=5, guidance=1.5)
    assert torch.equal(plain.sample(1, **options).data, shuffled.sample(1, **options).data)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_cache_changes_no_token(made_codes, guidance):
    gen = randomize(generators.create("token_shuffle", tokens=made_codes((4, 6), (7, 5)), window=2, **SIZES))
    cached, plain = (gen.sample([0, 1], seed=3, guidance=guidance, cache=cache).data for cache in (True, False))
    assert torch.equal(cached, plain)


def counted(made_codes, window):
    """FLOPs of a forward pass over a whole picture, and the lengths of the transformer's calls while sampling."""
    tokens = made_codes((16, 16), (17,), b=1)
    sizes = dict(width=128, depth_blocks=6, heads=4, hidden_multiple=32, classes=3)
    gen = generators.create("token_shuffle", tokens=tokens, window=window, **sizes).eval()
    steps = gen.to_steps(tokens.data)
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter does not see the fused attention of a CPU
    with plain, FlopCounterMode(display=False) as whole, torch.no_grad():
        gen.predict(steps, torch.tensor([1]))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as trunk, torch.no_grad():
        gen.trunk(torch.zeros(1, steps.shape[1], 128), gen.table)
    lengths = []
    handle = gen.trunk.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    gen.sample(1)
    handle.remove()
    return whole.get_total_flops(), trunk.get_total_flops(), lengths


def test_steps_and_flops_fall_by_the_square_of_the_window(made_codes):
    """The transformer's share falls by more than s^2, as attention falls by s^4; the fusing MLPs take some of it back."""
    plain_whole, plain_trunk, lengths = counted(made_codes, 1)
    assert lengths == [1] * 256
    for window in (2, 4):
        whole, trunk, lengths = counted(made_codes, window)
        assert lengths == [1] * (256 // window**2)
        assert plain_trunk / trunk > window**2, plain_trunk / trunk
        assert plain_whole / whole >= 0.9 * window**2, plain_whole / whole
