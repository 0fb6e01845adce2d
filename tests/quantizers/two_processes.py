"""What each of two processes runs for `test_distributed.py`, and one process alone."""

from pathlib import Path

import torch
import torch.distributed as dist

from zoo.quantizers import BSQ, IBQ, LFQ, RVQ, VQ, Quantizer, UsageMonitor
from zoo.quantizers.distributed import differentiable_mean, gather_rows

STEPS = 6
CUTS = {"halves": 15, "uneven": 22}  # vectors of rank 0; rank 1 has the rest of 30

BUILDERS = {
    "vq": lambda: VQ(dim=3, codebook_size=12, decay=0.6, revive_below=0.7),
    "vq_cosine": lambda: VQ(dim=3, codebook_size=12, decay=0.6, distance="cosine", revive_below=0.7),
    "vq_gradient": lambda: VQ(dim=3, codebook_size=12, learning="gradient", decay=0.6, revive_below=0.7),
    "rvq": lambda: RVQ(dim=3, codebook_size=12, num_codebooks=3, decay=0.6, revive_below=0.7, dropout=0.5),
    "rvq_shared": lambda: RVQ(dim=3, codebook_size=12, num_codebooks=3, decay=0.6, revive_below=0.7, shared=True),
    "rvq_stepwise": lambda: RVQ(
        dim=3, codebook_size=12, num_codebooks=3, decay=0.6, revive_below=0.7, shared=True, update_order="per_depth"
    ),
    "lfq": lambda: LFQ(bits=3, inverse_temperature=2.0),
    "bsq": lambda: BSQ(bits=3, inverse_temperature=2.0),
    "ibq": lambda: IBQ(dim=3, codebook_size=12, temperature=0.5, entropy_weight=1.0),
}


def batch(step: int) -> torch.Tensor:
    """The joint batch of a step, 30 vectors far apart from each other, so that no code hangs on the last digit."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(30, 3, generator=generator) * 2


def train(quantizer: Quantizer, rows: slice) -> dict[str, torch.Tensor]:
    """Train on `rows` of every joint batch; gives the final state, the last codes and the last gradient of x."""
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1) if list(quantizer.parameters()) else None
    for step in range(STEPS):
        x = batch(step)[rows].clone().requires_grad_()
        result = quantizer.train()(x)
        loss = result.loss + (result.x * batch(step + 50)[rows]).mean()
        loss.backward()
        if optimizer is not None:
            for parameter in quantizer.parameters():
                if dist.is_initialized():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
            optimizer.step()
            optimizer.zero_grad()
    state = {f"state.{name}": value.clone() for name, value in quantizer.state_dict().items()}
    return state | {"codes": result.codes, "gradient": x.grad}


class Tiny(torch.nn.Module):
    """An encoder before an RVQ, to be wrapped for data-parallel training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(3, 4)
        self.rvq = RVQ(dim=4, codebook_size=8, num_codebooks=2, decay=0.6, revive_below=0.7, estimator="rotation", dropout=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.rvq(self.encoder(x))
        return result.x.square().mean() + result.loss


def train_wrapped(rows: slice) -> dict[str, torch.Tensor]:
    """Two micro-batches per step, as gradient accumulation does; gives the final state."""
    tiny = Tiny()
    model = torch.nn.parallel.DistributedDataParallel(tiny) if dist.is_initialized() else tiny
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        (model(batch(step)[rows]) + model(batch(step + 50)[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in tiny.state_dict().items()}


def measure(rank: int) -> dict[str, torch.Tensor]:
    """The small pieces, with numbers that can be checked by hand."""
    monitor = UsageMonitor(codebook_size=4)
    monitor.update(torch.tensor([[0], [1]]) if rank == 0 else torch.tensor([[1], [3], [3]]))
    results = {f"monitor.{name}": value for name, value in monitor.compute().items()}
    results["gathered"] = gather_rows(torch.full((rank + 1, 2), float(rank)))
    x = torch.tensor([1.0 + rank, 3.0], requires_grad=True)
    mean = differentiable_mean(x * x)
    (mean * torch.tensor([1.0, 10.0 * (rank + 1)])).sum().backward()
    return results | {"mean": mean.detach(), "mean_gradient": x.grad}


def run(rank: int, folder: str) -> None:
    """Process `rank` of two: it has the first or the second part of every batch, for two ways to cut it."""
    torch.set_num_threads(1)
    # Built before the group exists, as Lightning does.
    quantizers = {(cut, name): build() for cut in CUTS for name, build in BUILDERS.items()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        results = measure(rank)
        for (cut, name), quantizer in quantizers.items():
            for key, value in train(quantizer, own_rows(rank, cut)).items():
                results[f"{cut}.{name}.{key}"] = value
        for name, value in train_wrapped(own_rows(rank, "halves")).items():
            results[f"wrapped.{name}"] = value
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def own_rows(rank: int, cut: str) -> slice:
    """What of every batch this rank has."""
    return slice(0, CUTS[cut]) if rank == 0 else slice(CUTS[cut], None)
