"""Two processes that share one model's state train as one process does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import zoo
from recipes.sharding import ShardedEMA
from tests.recipes.test_recipes import pictures, toy_recipe  # noqa: F401 - a fixture

STRATEGY = """
class_path: lightning.pytorch.strategies.ModelParallelStrategy
init_args: {data_parallel_size: 2, tensor_parallel_size: 1, save_distributed_checkpoint: false, process_group_backend: gloo}
"""


@pytest.mark.slow
def test_sharded_training_resumes_and_exports(pictures, tmp_path):  # noqa: F811
    """Two steps, then two more from the checkpoint: a whole tokenizer comes out, moved each time."""
    path = toy_recipe("flextok_nano.yaml", pictures, tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["trainer"]["strategy"] = yaml.safe_load(STRATEGY)
    recipe["trainer"] |= {"devices": 2, "val_check_interval": 1}
    for callback in recipe["trainer"]["callbacks"]:
        if "WeightAveraging" in callback["class_path"]:
            callback |= {"class_path": "recipes.sharding.ShardedEMA", "init_args": {"decay": 0.5}}
        if "ModelCheckpoint" in callback["class_path"]:
            callback["init_args"]["every_n_train_steps"] = 1
    path.write_text(yaml.safe_dump(recipe))
    states = []
    for steps in ("2", "4"):
        command = [str(Path(sys.executable).with_name("zoo")), "train", str(path), "--trainer.max_steps", steps]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        tok = zoo.load(tmp_path / "tokenizer")
        assert tok.decode(tok.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)
        states.append(tok.state_dict())
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert moved
    assert all(not name.startswith("vae.") for name in moved)


def test_average_is_the_recurrence():
    module = torch.nn.Linear(2, 1)
    ema = ShardedEMA(0.75)
    ema.on_fit_start(None, module)
    wanted = module.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            module.weight.add_(step + 1)
        ema.on_train_batch_end(None, module)
        wanted = 0.75 * wanted + 0.25 * module.weight.detach()
    now = module.weight.detach().clone()
    ema.on_validation_start(None, module)
    assert torch.allclose(module.weight, wanted)
    ema.on_validation_end(None, module)
    assert torch.equal(module.weight, now)
    again = ShardedEMA(0.75)
    again.load_state_dict(ema.state_dict())
    again.on_fit_start(None, module)
    assert torch.allclose(again.state_dict()["weight"], wanted)


def test_refuses_a_decay_outside_0_to_1():
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        ShardedEMA(1.0)
