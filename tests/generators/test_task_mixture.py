"""The mixture of random, next and all next tokens as a training objective: what each task sees, and how often it is drawn."""

import pytest
import torch

import zoo.generators as generators
from zoo.tokens import Tokens

SIZES = dict(width=16, depth_blocks=2, heads=2, hidden_multiple=8, classes=3, dropout=0.0, label_dropout=0.0)
MIXTURE = (0.25, 0.5, 0.25)
LABELS = torch.tensor([0, 2])


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def line(made_codes):
    def make(**more):
        return made_codes((6,), (7, 5), ordered=True, **more)

    return make


@pytest.fixture
def gen(line):
    made = generators.create("autoregressive", tokens=line(), mixture=MIXTURE, **SIZES)
    source = draws(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.5)
    return made.eval()


def moved(gen, task, steps, hidden, at):
    """For each step, whether its losses change when the codes at step `at` do."""
    changed = steps.clone()
    changed[:, at] = (changed[:, at] + 1) % 5
    before, after = (gen.task_losses(task, s, hidden, LABELS).detach() for s in (steps, changed))
    others = (before != after).any(2).any(0)
    others[at] = False
    return others.tolist()


def test_random_sees_before_and_behind_but_nothing_hidden(gen, line):
    steps, hidden = gen.to_steps(line().data), torch.tensor([[False, True, False, True, True, False]] * 2)
    assert moved(gen, "random", steps, hidden, 2) == [True, True, False, True, True, True]
    for at in (1, 3, 4):
        assert not any(moved(gen, "random", steps, hidden, at))
    assert not any(moved(gen, "random", steps, hidden, 5))  # no step is behind the last one to show it


def test_all_sees_the_prefix_only(gen, line):
    steps = gen.to_steps(line().data)
    for cut in range(6):
        hidden = (torch.arange(6) >= cut).expand(2, 6)
        for at in range(6):
            expected = [at < cut and i > at for i in range(6)]
            assert moved(gen, "all", steps, hidden, at) == expected


def test_tasks_are_drawn_by_their_shares_and_hide_what_they_say(gen, line):
    seen, original = [], gen.task_losses
    gen.task_losses = lambda task, steps, hidden, labels: seen.append((task, hidden)) or original(task, steps, hidden, labels)
    gen.train()
    for seed in range(400):
        gen.loss(line(), [0, 2], generator=draws(seed))
    tasks = [task for task, _ in seen]
    for task in ("random", "all"):
        assert abs(tasks.count(task) / 400 - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    starts = set()
    for task, hidden in seen:
        if task == "random":
            assert hidden.sum(1).tolist() == [4, 4]  # three quarters of six
        else:
            counts = hidden.sum(1)
            assert torch.equal(hidden, torch.arange(6) >= 6 - counts[:, None])
            starts.update((6 - counts).tolist())
    assert starts == set(range(6))


def test_short_items_hide_their_own_steps(gen, line):
    whole = line(b=1)
    both = Tokens.cat([whole, Tokens(whole.data[:, :3], whole.spec, whole.extent)])
    seen, original = [], gen.task_losses
    gen.task_losses = lambda task, steps, hidden, labels: seen.append(hidden) or original(task, steps, hidden, labels)
    gen.train()
    for seed in range(30):
        assert bool(gen.loss(both, [0, 2], generator=draws(seed)).isfinite())
    assert len(seen) > 5
    assert all(bool(hidden[1, :3].any()) for hidden in seen)


def test_evaluation_and_samples_are_those_of_the_next_token(gen, line):
    plain = generators.create("autoregressive", tokens=line(), **SIZES).eval()
    own = {key: value for key, value in gen.state_dict().items() if not key.startswith(("hidden_step", "task_heads"))}
    plain.load_state_dict(own)
    assert torch.equal(gen.loss(line(), [0, 2]), plain.loss(line(), [0, 2]))
    assert torch.equal(gen.sample([0, 2], seed=3).data, plain.sample([0, 2], seed=3).data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": (0.5, 0.5, 0.5)}, "together are 1"),
        ({"mixture": (0.5, 0.5, 0.0), "pattern": "delay"}, "others with 'parallel'"),
        ({"random_share": 1.0}, "random_share=1.0"),
    ],
)
def test_refused_mixtures(line, change, message):
    with pytest.raises(ValueError, match=message):
        generators.create("autoregressive", tokens=line(), **{**SIZES, **change})


def test_a_task_without_a_share_is_refused(gen, line):
    plain = generators.create("autoregressive", tokens=line(), **SIZES)
    steps = plain.to_steps(line().data)
    for made, task in ((plain, "all"), (gen, "next")):
        with pytest.raises(ValueError, match=f"task='{task}'"):
            made.task_losses(task, steps, torch.ones(2, 6, dtype=torch.bool), LABELS)
