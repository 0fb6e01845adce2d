"""Two processes must learn the codebook that one process learns from the joint batch, bit for bit the same on both."""

import pytest
import torch
import torch.multiprocessing as mp

from tests.quantizers import two_processes

Results = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(two_processes.run, args=(str(folder),), nprocs=2, join=True, start_method="fork")  # torch is loaded already
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", two_processes.BUILDERS)
@pytest.mark.parametrize("cut", two_processes.CUTS)
def test_codebooks_are_bit_identical_on_both_ranks(name: str, cut: str, ranks: Results) -> None:
    first, second = ranks
    keys = [key for key in first if key.startswith(f"{cut}.{name}.state.")]
    assert bool(keys) == (name not in ("lfq", "bsq"))
    for key in keys:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", two_processes.BUILDERS)
def test_two_ranks_equal_one_process_on_the_joint_batch(name: str, ranks: Results) -> None:
    alone = two_processes.train(two_processes.BUILDERS[name](), slice(None))
    for key, value in alone.items():
        if key.startswith("state."):
            torch.testing.assert_close(ranks[0][f"halves.{name}.{key}"], value, rtol=1e-4, atol=1e-4)
    codes = torch.cat([own[f"halves.{name}.codes"] for own in ranks])
    assert torch.equal(codes, alone["codes"])
    # each rank's loss is a mean over half as many vectors, so its gradients are twice as large
    gradient = torch.cat([own[f"halves.{name}.gradient"] for own in ranks]) / 2
    torch.testing.assert_close(gradient, alone["gradient"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vq", "rvq", "rvq_shared", "rvq_stepwise"])
def test_running_averages_do_not_care_how_vectors_are_shared_out(name: str, ranks: Results) -> None:
    alone = two_processes.train(two_processes.BUILDERS[name](), slice(None))
    for key, value in alone.items():
        if key.startswith("state."):
            torch.testing.assert_close(ranks[0][f"uneven.{name}.{key}"], value, rtol=1e-4, atol=1e-4)


def test_data_parallel_wrapper_equals_one_process(ranks: Results) -> None:
    """Buffers are broadcast from rank 0 before each forward; that must change nothing."""
    alone = two_processes.train_wrapped(slice(None))
    for name, value in alone.items():
        assert torch.equal(ranks[0][f"wrapped.{name}"], ranks[1][f"wrapped.{name}"]), name
        torch.testing.assert_close(ranks[0][f"wrapped.{name}"], value, rtol=1e-4, atol=1e-4)


def test_revival_happened(ranks: Results) -> None:
    """Otherwise the tests above would not cover it: without revival the run ends elsewhere."""
    quantizer = two_processes.BUILDERS["vq"]()
    quantizer.revive_below = 0.0
    without = two_processes.train(quantizer, slice(None))
    assert not torch.allclose(without["state.codebook"], ranks[0]["halves.vq.state.codebook"], atol=1e-2)


def test_monitor_counts_all_ranks(ranks: Results) -> None:
    for own in ranks:
        assert own["monitor.counted"].tolist() == [5.0]
        assert own["monitor.used_fraction"].tolist() == [0.75]


def test_gathering_and_averaging(ranks: Results) -> None:
    for rank, results in enumerate(ranks):
        assert results["gathered"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert results["mean"].tolist() == [2.5, 9.0]  # of 1 and 4, of 9 and 9
        # d mean / d x = x; the upstream gradients 1 and 10 (rank + 1) are averaged over the ranks
        assert results["mean_gradient"].tolist() == pytest.approx([2.0 * (1 + rank) * 1.0, 2 * 3.0 * 15.0])
