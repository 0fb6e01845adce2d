"""A training run of a recipe that ends with SIGKILL after one of its steps, as if the machine had gone down."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import recipes.train

STEP = 5


class _Kill(Callback):
    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == STEP:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(words: Sequence[str]) -> None:
    original = recipes.train.RecipeCLI.instantiate_trainer

    def instantiate(self: Any, **options: Any) -> Any:
        trainer = original(self, **options)
        trainer.callbacks.insert(0, _Kill())  # ahead of the checkpoint of the same step
        return trainer

    recipes.train.RecipeCLI.instantiate_trainer = instantiate
    recipes.train.main(list(words))


def train_until_killed(*words: str, fresh: bool = False) -> None:
    """Train in a process of its own that is killed after step 5.

    Args:
        words: of `zoo train`.
        fresh: start a new interpreter, which has seen no run before; it takes seconds to import. Otherwise a fork of this one.
    """
    if fresh:
        environment = {**os.environ, "PYTHONPATH": str(Path(recipes.train.__file__).parents[1])}
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        return
    process = multiprocessing.get_context("fork").Process(target=_train, args=(words,))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


if __name__ == "__main__":
    _train(sys.argv[1:])
