"""Training a generator for the generation scorer: a fixed budget of computing on fixed data, once for every seed.

Computing is counted, not timed: a budget is a number of optimizer steps, or of floating-point operations, from which the steps
follow by counting one (forward and backward, two operations for a multiply-add). Settings are those of the generator's recipe
where it has one.
"""

import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.flop_counter import FlopCounterMode

import recipes
from eval.generation import Contender
from eval.runner import tensors_sha256
from recipes.data.tokens import TokenDataModule
from recipes.modules.base import training_attention
from recipes.modules.generator import GeneratorRecipe
from zoo.tokenizer import Tokenizer

__all__ = ["Budget", "parse_budget", "train_contender"]

_EMA = 0.998


class Budget(NamedTuple):
    """How much computing a training may use: one of the two is given.

    Attributes:
        steps: of the optimizer.
        flops: floating-point operations of all its forward and backward passes.
    """

    steps: int | None = None
    flops: float | None = None


def parse_budget(text: str) -> Budget:
    """Read `2000`, `2000steps` or `5e14flops`.

    Raises:
        ValueError: something else, or nothing to train with.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(steps?|flops?)?\s*", text.lower())
    value = float(match[1]) if match and re.fullmatch(r"[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", match[1]) else math.nan
    steps = match is not None and not (match[2] or "").startswith("flop")
    if not value > 0 or (steps and value != int(value)):
        raise ValueError(f"--budget {text!r}. Write optimizer steps such as 2000, or operations such as 5e14flops.")
    return Budget(steps=int(value)) if steps else Budget(flops=value)


def recipe_settings(generator: str) -> dict[str, Any]:
    """Give `model`, `data` and `trainer` settings of the recipe that ships for a generator; defaults where there is none."""
    path = Path(recipes.__file__).parent / "configs" / f"{generator}.yaml"
    if not path.is_file():
        return {"model": {}, "data": {}, "trainer": {"gradient_clip_val": 1.0}}
    config = yaml.safe_load(path.read_text())
    model = {key: value for key, value in config["model"]["init_args"].items() if key not in ("generator", "tokenizer", "seed")}
    data = {key: config["data"]["init_args"][key] for key in ("views", "batch_size")}
    trainer = {key: config["trainer"][key] for key in ("precision", "gradient_clip_val")}
    return {"model": model, "data": data, "trainer": trainer}


def flops_of_a_step(recipe: GeneratorRecipe, batch: Any) -> int:
    """Count the operations of the forward and backward pass of a batch."""
    generator = recipe.generator.train()
    draws = torch.Generator(device=recipe.device).manual_seed(0)
    classes = batch.labels if generator.config.classes else None
    with FlopCounterMode(display=False) as counter, training_attention(recipe.device):
        generator.loss(batch.tokens, classes, generator=draws).backward()
    generator.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def train_contender(
    tokenizer: Tokenizer,
    generator: str,
    train: str,
    *,
    seed: int,
    budget: Budget,
    overrides: Mapping[str, Any] | None = None,
    depth: int | None = None,
    batch_size: int | None = None,
    views: int | None = None,
    cache: str = ".cache/tokens",
    limit: int | None = None,
    accelerator: str = "cpu",
    progress: bool = False,
) -> Contender:
    """Train a fresh generator on the tokenizer's tokens of the training pictures.

    Args:
        tokenizer: frozen.
        generator: catalog name or family.
        train: source of the training pictures, with classes.
        seed: of the weights, the order and all draws.
        budget: see `Budget`; steps are rounded down, at least one.
        overrides: fields of the generator's configuration; the number of classes is otherwise that of the pictures.
        depth: levels of a residual tokenizer to train on.
        batch_size, views: None takes the recipe's.
        cache: folder of the tokens.
        limit: only the first so many training pictures.
        accelerator: of Lightning.
        progress: show Lightning's bar.

    Returns:
        The averaged weights, in evaluation mode, with what the training was.

    Raises:
        ValueError: settings that do not fit, or pictures without classes.
    """
    settings = recipe_settings(generator)
    data_settings = {**settings["data"], **({} if batch_size is None else {"batch_size": batch_size})}
    if views is not None:
        data_settings["views"] = views
    # The same views of the pictures for every seed: only the training differs.
    data = TokenDataModule(train, tokenizer=tokenizer, depth=depth, cache=cache, limit=limit, **data_settings)
    options = {**settings["model"], "seed": seed}
    with torch.random.fork_rng(devices=[]):
        data.prepare_data()
        data.setup("fit")
        data.seed = seed
        classes = int(data.train_set.cache.labels.max()) + 1
        options["overrides"] = {"classes": classes, **(options.get("overrides") or {}), **(overrides or {})}
        torch.manual_seed(seed)
        recipe = GeneratorRecipe(generator, tokenizer=tokenizer, depth=depth, **options)
        sample = data.collate([data.train_set[i] for i in range(min(data.batch_size, len(data.train_set)))])
        flops = flops_of_a_step(recipe, sample)
        steps = budget.steps if budget.steps is not None else max(1, int(budget.flops / flops))
        recipe.warmup_steps = min(recipe.warmup_steps, max(1, steps // 10))
        decay = max(0.0, min(_EMA, 1 - 20 / steps))
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_steps=steps,
                accelerator=accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=progress,
                enable_model_summary=False,
                limit_val_batches=0,
                use_distributed_sampler=False,
                callbacks=[EMAWeightAveraging(decay=decay)],
                default_root_dir=folder,
                **settings["trainer"],
            )
            trainer.fit(recipe, datamodule=data)
    trained = recipe.generator.to(tokenizer.device).eval().requires_grad_(False)
    return Contender(
        trained,
        seed,
        {
            "trained_for_this": True,
            "seed": seed,
            "budget": {key: value for key, value in budget._asdict().items() if value is not None},
            "steps": steps,
            "batch_size": data.batch_size,
            "views": data.views,
            "flops_per_step": flops,
            "flops": flops * steps,
            "seconds": time.perf_counter() - started,
            "ema_decay": decay,
            "learning_rate": recipe.learning_rate,
            "weights_sha256": tensors_sha256(trained),
        },
    )
