"""A run that was stopped anywhere goes on with exactly the batches and losses of a run that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning: few workers, a new folder for checkpoints

ROOT = Path(__file__).parents[3]
EPOCH = 5  # 22 pictures in batches of 4; two are left over in each epoch


def script(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("linear_run.py")), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def logged(folder: Path, rank: int = 0) -> list[tuple[list[int], float]]:
    return [tuple(json.loads(line)) for line in (folder / f"steps.{rank}").read_text().splitlines()]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.split("=")[1].split("-")[0])


def test_killed_in_mid_epoch_goes_on_exactly(pack: Path, tmp_path: Path, linear_run: ModuleType):
    whole = linear_run.train(pack, tmp_path / "whole", max_epochs=3).steps
    assert len(whole) == 3 * EPOCH

    killed = script(pack, tmp_path, "--die_after", 7, "--workers", 2)  # in its 8th step: the 3rd of the second epoch
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert logged(tmp_path) == whole[:8]  # worker processes, and what they fetched ahead, change nothing
    last = tmp_path / "last.ckpt"  # of step 6, the first of the second epoch
    resumed = linear_run.train(pack, tmp_path / "resumed", resume=last, max_epochs=3).steps
    assert resumed == whole[6:]


@pytest.mark.parametrize(
    ("trainer", "checkpoint", "data"),
    [
        pytest.param({"max_epochs": 3}, {}, {}, id="epochs"),
        pytest.param({"max_steps": 13}, {}, {}, id="steps"),
        pytest.param(
            {"max_epochs": 3, "val_check_interval": 2}, {"every_n_train_steps": 2}, {"val": True}, id="validation"
        ),
        pytest.param(
            {"max_steps": 13, "val_check_interval": 3, "check_val_every_n_epoch": None},
            {"every_n_train_steps": 3},
            {"val": True},
            id="validation_across_epochs",
        ),
        pytest.param(
            {"max_epochs": 3},
            {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True},
            {},
            id="end_of_epoch",
        ),
        pytest.param(
            {"max_epochs": 3},
            {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": False},
            {"val": True},
            id="end_of_validation",
        ),
        pytest.param({"max_epochs": 3, "limit_train_batches": 0.8}, {"every_n_train_steps": 2}, {}, id="limited_epoch"),
        pytest.param({"max_epochs": 3}, {"every_n_train_steps": 4}, {"num_workers": 2}, id="workers"),
    ],
)
def test_every_checkpoint_goes_on_exactly(pack, tmp_path, linear_run, trainer, checkpoint, data):
    data = {**data, "val": str(pack)} if data.get("val") else data
    same = {"checkpoint": checkpoint, "data": data, **trainer}
    whole = linear_run.train(pack, tmp_path / "whole", **same).steps
    epoch = 4 if "limit_train_batches" in trainer else EPOCH
    assert len(whole) == (13 if "max_steps" in trainer else 3 * epoch)
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"), key=step_of)
    assert len(checkpoints) >= 3
    for written in checkpoints:
        resumed = linear_run.train(pack, tmp_path / written.stem, resume=written, **same).steps
        assert resumed == whole[step_of(written) :], written.name


def test_gradient_accumulation_goes_on_after_the_optimizer_step(pack, tmp_path, linear_run):
    same = {"max_epochs": 3, "accumulate_grad_batches": 2, "checkpoint": {"filename": "{step}"}}
    whole = linear_run.train(pack, tmp_path / "whole", **same).steps
    batches = {1: 2, 2: 4, 3: 5, 4: 7, 5: 9, 6: 10}  # optimizer step -> batches seen: 2, 2 and the last one of 5
    for step, seen in batches.items():
        resumed = linear_run.train(pack, tmp_path / str(step), resume=tmp_path / "whole" / f"step={step}.ckpt", **same)
        assert resumed.steps == whole[seen:], step


def test_two_manual_optimizers_go_on_exactly(pack, tmp_path, linear_run):
    class Manual(linear_run.Linear):
        """Steps two optimizers in every batch, so that Lightning's step counts twice."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx) -> None:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.Adam([part], lr=1e-2) for part in (self.layer.weight, self.layer.bias)]

    def run(folder, **options):
        return linear_run.train(pack, tmp_path / folder, module=Manual(), max_epochs=3, **options).steps

    whole = run("whole")
    assert len(whole) == 3 * EPOCH
    for batch in (3, 5, 7):
        assert run(str(batch), resume=tmp_path / "whole" / f"step={2 * batch}.ckpt") == whole[batch:], batch


def test_a_run_stopped_by_max_steps_is_extended_exactly(pack, tmp_path, linear_run):
    whole = linear_run.train(pack, tmp_path / "whole", max_steps=13).steps
    end = {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True}
    linear_run.train(
        pack, tmp_path / "short", max_steps=7, checkpoint=end
    )  # written when Lightning calls epoch 1 ended
    longer = linear_run.train(pack, tmp_path / "longer", max_steps=13, resume=tmp_path / "short" / "step=7.ckpt")
    assert [index for index, _ in longer.steps] == [index for index, _ in whole[7:]]


@pytest.mark.parametrize(("name", "value"), [("batch_size", 2), ("seed", 4), ("limit", 21)])
def test_another_order_is_refused_inside_an_epoch_and_taken_between_epochs(pack, tmp_path, linear_run, name, value):
    linear_run.train(pack, tmp_path, max_epochs=2)
    with pytest.raises(ValueError, match=f"lies inside epoch 1, after batch 2 of it.*(count|{name}) was"):
        linear_run.train(pack, tmp_path / "b", resume=tmp_path / "step=7.ckpt", data={name: value}, max_epochs=2)
    assert linear_run.train(
        pack, tmp_path / "c", resume=tmp_path / "step=5.ckpt", data={name: value}, max_epochs=2
    ).steps


def test_a_fresh_run_after_a_resumed_one_starts_at_the_beginning(pack, tmp_path, linear_run):
    def run(folder, data, **options):
        return linear_run.train(pack, tmp_path / folder, datamodule=data, max_epochs=2, **options).steps

    def data(batch_size):
        return linear_run.ImageDataModule(str(pack), size=linear_run.SIZE, batch_size=batch_size, seed=3)

    run("whole", data(4))
    used, expected = data(2), run("other", data(2))
    run("resumed", used, resume=tmp_path / "whole" / "step=5.ckpt")  # an end of epoch: the batch size may change
    assert run("fresh", used) == expected


@pytest.mark.slow
def test_two_processes_share_each_epoch_and_go_on_exactly(pack: Path, tmp_path: Path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder, more in ((whole, []), (resumed, ["--resume", whole / "step=3.ckpt"])):
        folder.mkdir()
        done = script(pack, folder, "--devices", 2, *more)
        assert done.returncode == 0, done.stderr
    steps = [logged(whole, rank) for rank in (0, 1)]
    assert [len(part) for part in steps] == [6, 6]  # 22 pictures, 2 x 4 at a step: 2 steps in each of 3 epochs
    for start in (0, 2, 4):
        seen = [index for part in steps for batch, _ in part[start : start + 2] for index in batch]
        assert len(seen) == len(set(seen)) == 16
    for rank in (0, 1):
        assert logged(resumed, rank) == steps[rank][3:]  # step 3 is the first of the second epoch
