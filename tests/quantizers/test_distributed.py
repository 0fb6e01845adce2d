"""Two processes must learn the codebook that one process learns from the joint batch, bit for bit the same on both."""

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))  # the spawned processes import the module by name
import two_processes

Results = list[dict[str, torch.Tensor]]


def spawn(folder: Path, cut: int) -> Results:
    mp.spawn(two_processes.run, args=(str(folder), cut), nprocs=2, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return spawn(tmp_path_factory.mktemp("halves"), cut=15)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Rank 1 has a third as many vectors as rank 0."""
    return spawn(tmp_path_factory.mktemp("uneven"), cut=22)


@pytest.mark.parametrize("name", two_processes.BUILDERS)
@pytest.mark.parametrize("ranks", ["halves", "uneven"])
def test_codebooks_are_bit_identical_on_both_ranks(name: str, ranks: str, request: pytest.FixtureRequest) -> None:
    first, second = request.getfixturevalue(ranks)
    keys = [key for key in first if key.startswith(f"{name}.state.")]
    assert bool(keys) == (name not in ("lfq", "bsq"))
    for key in keys:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", two_processes.BUILDERS)
def test_two_ranks_equal_one_process_on_the_joint_batch(name: str, halves: Results) -> None:
    alone = two_processes.train(two_processes.BUILDERS[name](), slice(None))
    for key, value in alone.items():
        if key.startswith("state."):
            torch.testing.assert_close(halves[0][f"{name}.{key}"], value, rtol=1e-4, atol=1e-4)
    codes = torch.cat([ranks[f"{name}.codes"] for ranks in halves])
    assert torch.equal(codes, alone["codes"])
    # each rank's loss is a mean over half as many vectors, so its gradients are twice as large
    gradient = torch.cat([ranks[f"{name}.gradient"] for ranks in halves]) / 2
    torch.testing.assert_close(gradient, alone["gradient"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vq", "rvq", "rvq_shared", "rvq_stepwise"])
def test_running_averages_do_not_care_how_vectors_are_shared_out(name: str, uneven: Results) -> None:
    alone = two_processes.train(two_processes.BUILDERS[name](), slice(None))
    for key, value in alone.items():
        if key.startswith("state."):
            torch.testing.assert_close(uneven[0][f"{name}.{key}"], value, rtol=1e-4, atol=1e-4)


def test_data_parallel_wrapper_equals_one_process(halves: Results) -> None:
    """Buffers are broadcast from rank 0 before each forward; that must change nothing."""
    alone = two_processes.train_wrapped(slice(None))
    for name, value in alone.items():
        assert torch.equal(halves[0][f"wrapped.{name}"], halves[1][f"wrapped.{name}"]), name
        torch.testing.assert_close(halves[0][f"wrapped.{name}"], value, rtol=1e-4, atol=1e-4)


def test_revival_happened(halves: Results) -> None:
    """Otherwise the tests above would not cover it: without revival the run ends elsewhere."""
    quantizer = two_processes.BUILDERS["vq"]()
    quantizer.revive_below = 0.0
    without = two_processes.train(quantizer, slice(None))
    assert not torch.allclose(without["state.codebook"], halves[0]["vq.state.codebook"], atol=1e-2)


def test_monitor_counts_all_ranks(halves: Results) -> None:
    for ranks in halves:
        assert ranks["monitor.counted"].tolist() == [5.0]
        assert ranks["monitor.used_fraction"].tolist() == [0.75]


def test_gathering_and_averaging(halves: Results) -> None:
    for rank, results in enumerate(halves):
        assert results["gathered"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert results["mean"].tolist() == [2.5, 9.0]  # of 1 and 4, of 9 and 9
        # d mean / d x = x; the upstream gradients 1 and 10 (rank + 1) are averaged over the ranks
        assert results["mean_gradient"].tolist() == pytest.approx([2.0 * (1 + rank) * 1.0, 2 * 3.0 * 15.0])
