"""TokenFLEX's pooling, projection and draw, against worked examples and independent formulas."""

import pytest
import torch

from zoo.transforms.tokenflex import FlexPool, SwiGLU, TokenFlex, TokenFlexConfig, draw_side, pooling_cells

SMALL = TokenFlexConfig(in_channels=5, hidden_channels=7, out_channels=3, sides=(2, 3, 4))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(config=SMALL):
    """A projector with seeded weights."""
    model = TokenFlex(config)
    generator = seeded(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.eval()


# -- pooling ---------------------------------------------------------------------------------------------------------------------


WORKED = {
    (6, 4): [(0, 2), (1, 3), (3, 5), (4, 6)],
    (32, 12): [
        *[(0, 3), (2, 6), (5, 8), (8, 11), (10, 14), (13, 16)],
        *[(16, 19), (18, 22), (21, 24), (24, 27), (26, 30), (29, 32)],
    ],
    (16, 12): [
        *[(0, 2), (1, 3), (2, 4), (4, 6), (5, 7), (6, 8)],
        *[(8, 10), (9, 11), (10, 12), (12, 14), (13, 15), (14, 16)],
    ],
    (32, 8): [(4 * i, 4 * i + 4) for i in range(8)],
    (32, 16): [(2 * i, 2 * i + 2) for i in range(16)],
}


@pytest.mark.parametrize(("length", "cells"), WORKED)
def test_cells_are_those_of_the_worked_examples(length, cells):
    assert pooling_cells(length, cells) == WORKED[length, cells]


def test_a_row_of_six_pools_to_four():
    row = torch.arange(6.0).expand(1, 1, 6, 6)
    assert FlexPool()(row, 4)[0, 0, 0].tolist() == [0.5, 1.5, 3.5, 4.5]


def test_a_grid_of_six_pools_to_four():
    grid = torch.arange(36.0).view(1, 1, 6, 6)
    assert FlexPool()(grid, 4)[0, 0].tolist() == [
        [3.5, 4.5, 6.5, 7.5],
        [9.5, 10.5, 12.5, 13.5],
        [21.5, 22.5, 24.5, 25.5],
        [27.5, 28.5, 30.5, 31.5],
    ]


@pytest.mark.parametrize(("h", "w"), [(7, 7), (5, 11), (16, 12)])
def test_pooling_averages_exactly_the_cells(h, w):
    x = torch.randn(2, 3, h, w, generator=seeded())
    for side in range(1, min(h, w) + 1):
        rows, columns = pooling_cells(h, side), pooling_cells(w, side)
        expected = torch.stack([torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in columns], -1) for a, b in rows], -2)
        torch.testing.assert_close(FlexPool()(x, side), expected)


@pytest.mark.parametrize("cells", [0, -1, 7])
def test_cells_outside_the_axis_are_refused(cells):
    with pytest.raises(ValueError, match=rf"pooling_cells: cells={cells} for an axis of 6\. Allowed: 1\.\.6"):
        pooling_cells(6, cells)


@pytest.mark.parametrize("side", [0, 5])
def test_a_side_that_the_grid_does_not_have_is_refused(side):
    with pytest.raises(ValueError, match=rf"FlexPool: side={side} for a grid of \(4, 9\)\. Allowed: 1\.\.4"):
        FlexPool()(torch.zeros(1, 1, 4, 9), side)
    with pytest.raises(ValueError, match=r"FlexPool: x has shape \(1, 4, 9\)\. Needed: \(b, c, h, w\)"):
        FlexPool()(torch.zeros(1, 4, 9), 2)


# -- projection ------------------------------------------------------------------------------------------------------------------


def test_the_gate_of_one_times_two():
    layer = SwiGLU(in_channels=1, hidden_channels=1, out_channels=1)
    with torch.no_grad():
        for linear, weight in ((layer.gate, 1.0), (layer.value, 2.0), (layer.out, 1.0)):
            linear.weight.fill_(weight)
    assert float(layer(torch.ones(1, 1)).detach()) == pytest.approx(1.46212, abs=1e-5)


def test_tokens_are_pooled_first_then_projected_row_by_row():
    model, x = small(), torch.randn(2, 5, 6, 9, generator=seeded())
    gate, value, out = (layer.weight for layer in (model.project.gate, model.project.value, model.project.out))
    tokens = model(x, tokens=9)
    assert tokens.shape == (2, 9, 3)
    for row, (a, b) in enumerate(pooling_cells(6, 3)):
        for column, (c, d) in enumerate(pooling_cells(9, 3)):
            mean = x[:, :, a:b, c:d].mean((2, 3))
            gated = mean @ gate.T
            expected = (gated * torch.sigmoid(gated) * (mean @ value.T)) @ out.T
            torch.testing.assert_close(tokens[:, 3 * row + column], expected)


def test_the_gate_is_not_linear_so_pooling_cannot_come_second():
    model, x = small(), torch.randn(1, 5, 4, 4, generator=seeded())
    assert float((model(x, tokens=16).mean(1) - model(x, tokens=1)[:, 0]).abs().max()) > 1e-2


# -- any number of tokens from one set of weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", range(1, 9))
def test_one_set_of_weights_gives_every_count(side):
    model, x = small(), torch.randn(3, 5, 8, 10, generator=seeded())
    tokens = model(x, tokens=side * side)
    assert tokens.shape == (3, side * side, 3)
    torch.testing.assert_close(tokens[1:2], model(x[1:2], tokens=side * side))
    assert model.extrapolates(side * side) == (side not in (2, 3, 4))


def test_no_weight_depends_on_the_counts():
    one = {name: value.shape for name, value in small().state_dict().items()}
    other = TokenFlexConfig(in_channels=5, hidden_channels=7, out_channels=3, sides=(8, 12, 16))
    assert one == {name: value.shape for name, value in TokenFlex(other).state_dict().items()}


def test_evaluation_takes_the_largest_count_of_training():
    model, x = small(), torch.randn(1, 5, 6, 6, generator=seeded())
    assert model.token_counts == (4, 9, 16)
    torch.testing.assert_close(model(x), model(x, tokens=16))


def test_the_counts_of_the_paper_are_the_default():
    config = TokenFlexConfig(in_channels=1, hidden_channels=1, out_channels=1)
    assert TokenFlex(config).token_counts == (64, 144, 256)
    assert TokenFlexConfig.from_dict(config.to_dict()) == config


# -- the draw of training --------------------------------------------------------------------------------------------------------


def test_training_draws_every_count_about_equally_often():
    model, generator = small().train(), seeded(3)
    x = torch.zeros(1, 5, 4, 4)
    lengths = [model(x, generator=generator).shape[1] for _ in range(600)]
    assert set(lengths) == {4, 9, 16}
    # 200 expected each; five standard deviations of a binomial count are 58.
    assert all(abs(lengths.count(n) - 200) < 58 for n in (4, 9, 16))


def test_the_draw_follows_the_generator_alone():
    first = [draw_side((8, 12, 16), generator=g) for g in [seeded(5)] for _ in range(20)]
    torch.manual_seed(99)
    assert first == [draw_side((8, 12, 16), generator=g) for g in [seeded(5)] for _ in range(20)]
    assert first != [draw_side((8, 12, 16), generator=g) for g in [seeded(6)] for _ in range(20)]


def test_training_may_name_the_count():
    assert small().train()(torch.zeros(1, 5, 4, 4), tokens=9).shape == (1, 9, 3)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_gradients_reach_every_weight_and_every_pixel_of_the_features(tokens):
    model, x = small(), torch.randn(1, 5, 4, 4, generator=seeded(), requires_grad=True)
    model(x, tokens=tokens).square().sum().backward()
    for value in (x, *model.parameters()):
        assert value.grad is not None
        assert bool((value.grad != 0).all())


# -- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [-4, 0, 2, 15])
def test_a_count_that_is_no_square_is_refused(tokens):
    with pytest.raises(ValueError, match=rf"TokenFlex: tokens={tokens}\. Allowed: square numbers 1, 4, 9, \.\.\. 36"):
        small()(torch.zeros(1, 5, 6, 7), tokens=tokens)


def test_more_tokens_than_the_grid_holds_are_refused():
    with pytest.raises(ValueError, match=r"TokenFlex: 16 tokens of a grid with short side 3\. Allowed: up to 9"):
        small()(torch.zeros(1, 5, 3, 7), tokens=16)
    with pytest.raises(ValueError, match=r"TokenFlex: 16 tokens of a grid with short side 3\. Allowed: up to 9"):
        small()(torch.zeros(1, 5, 3, 7))


def test_a_draw_needs_a_generator_and_nothing_else_takes_one():
    x = torch.zeros(1, 5, 4, 4)
    with pytest.raises(ValueError, match=r"Give a torch\.Generator to draw with or tokens"):
        small().train()(x)
    for model, tokens in ((small(), None), (small(), 4), (small().train(), 4)):
        with pytest.raises(ValueError, match="a generator is given, but nothing is drawn"):
            model(x, tokens=tokens, generator=seeded())


@pytest.mark.parametrize("shape", [(5, 4, 4), (1, 4, 4, 4), (1, 16, 5)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"TokenFlex: x has shape .*Needed: \(b, 5, h, w\)"):
        small()(torch.zeros(shape), tokens=4)


@pytest.mark.parametrize("sides", [(), (0, 2)])
def test_sides_that_are_none_are_refused(sides):
    with pytest.raises(ValueError, match=r"TokenFlexConfig: sides=.*each at least 1"):
        TokenFlexConfig(in_channels=1, hidden_channels=1, out_channels=1, sides=sides)
    with pytest.raises(ValueError, match=r"draw_side: sides=.*each at least 1"):
        draw_side(sides, generator=seeded())


@pytest.mark.parametrize("sides", [(3, 2), (2, 2)])
def test_sides_must_rise(sides):
    with pytest.raises(ValueError, match=r"TokenFlexConfig: sides=.*rising"):
        TokenFlexConfig(in_channels=1, hidden_channels=1, out_channels=1, sides=sides)


@pytest.mark.parametrize("name", ["in_channels", "hidden_channels", "out_channels"])
def test_widths_are_checked(name):
    with pytest.raises(ValueError, match=rf"TokenFlexConfig: {name}=0\. Allowed: at least 1"):
        TokenFlexConfig(**{"in_channels": 1, "hidden_channels": 1, "out_channels": 1, name: 0})
