"""Train a linear model on a pack and write down what every step saw; as a script it can kill itself."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from recipes.data.images import ImageDataModule

SIZE, BATCH = 8, 4


class Linear(pl.LightningModule):
    """Predict the label from the pixels; `steps` holds (picture numbers, loss) of every batch."""

    def __init__(self, *, die_after: int | None = None, log: Path | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * SIZE * SIZE, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-0.01, 0.01, 3 * SIZE * SIZE)[None])
            self.layer.bias.zero_()
        self.die_after = die_after
        self.log_path = log
        self.steps: list[tuple[list[int], float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (self.layer(batch.images.flatten(1))[:, 0] - batch.labels).square().mean()
        self.steps.append((batch.index.tolist(), loss.item()))
        if self.log_path is not None:
            with open(self.log_path.with_suffix(f".{self.global_rank}"), "a") as file:
                file.write(json.dumps(self.steps[-1]) + "\n")
        if self.die_after is not None and len(self.steps) > self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", batch.images.mean(), batch_size=len(batch.images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(
    pack: Path | str,
    folder: Path | str,
    *,
    resume: Path | str | None = None,
    checkpoint: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    module: pl.LightningModule | None = None,
    datamodule: pl.LightningDataModule | None = None,
    **trainer: Any,
) -> pl.LightningModule:
    """Train with checkpoints in `folder`, from `resume` if given, and return the module with its `steps`."""
    torch.set_num_threads(1)
    module = module or Linear()
    arguments = {"train": str(pack), "size": SIZE, "batch_size": BATCH, "seed": 3} | (data or {})
    every = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"} | (checkpoint or {})
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"num_sanity_val_steps": 0, "callbacks": [ModelCheckpoint(folder, **every)]}
    pl.Trainer(**settings | trainer).fit(module, datamodule or ImageDataModule(**arguments), ckpt_path=resume)
    return module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pack")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die_after", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--resume")
    arguments = parser.parse_args()
    train(
        arguments.pack,
        arguments.folder,
        resume=arguments.resume,
        module=Linear(die_after=arguments.die_after, log=arguments.folder / "steps"),
        checkpoint={"every_n_train_steps": 3, "save_last": True},
        data={"num_workers": arguments.workers},
        max_epochs=3,
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
    )


if __name__ == "__main__":
    main()
