"""`zoo train CONFIG.yaml [overrides]`: LightningCLI on one recipe, resumable, exporting a folder that the zoo loads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from recipes.sharding import full
from zoo.checkpoint import write_folder

__all__ = ["ExportGenerator", "ExportTokenizer", "RecipeCLI", "export_checkpoint", "main"]

logger = logging.getLogger(__name__)


def export_tokenizer(tokenizer: Any, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """Write a tokenizer as a folder of our own format; `tensors` stand in for its own."""
    from zoo.publishing import folder_config

    tensors = {key: value.detach().cpu() for key, value in (tensors or tokenizer.state_dict()).items()}
    return write_folder(folder, config=folder_config(tokenizer), tensors=tensors, overwrite=True)


class ExportTokenizer(Callback):
    """Write the trained tokenizer (the averaged weights where there are any) to `<run>/tokenizer` at the end."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or not hasattr(pl_module, "tokenizer"):
            return
        tensors = {key: full(value) for key, value in pl_module.tokenizer.state_dict().items()}
        if trainer.is_global_zero:
            folder = export_tokenizer(pl_module.tokenizer, Path(trainer.default_root_dir) / "tokenizer", tensors)
            logger.info("wrote %s", folder)


class ExportGenerator(Callback):
    """Write the trained generator (the averaged weights where there are any) to `<run>/generator` at the end."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or not hasattr(pl_module, "generator"):
            return
        from zoo import generators

        tensors = {key: full(value).detach().cpu() for key, value in pl_module.generator.state_dict().items()}
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "generator"
            generators.save(pl_module.generator, folder, overwrite=True, tensors=tensors)
            logger.info("wrote %s", folder)


def export_checkpoint(checkpoint: Path, module: LightningModule, folder: Path) -> Path:
    """Write the tokenizer inside a training checkpoint as a folder, averaged weights where the run kept them."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "tokenizer."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    module.tokenizer.load_state_dict(own)
    return export_tokenizer(module.tokenizer, folder)


class RecipeCLI(LightningCLI):
    """LightningCLI with the zoo's defaults: subclasses in YAML, exporting at the end, resuming from the last checkpoint."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--threads", type=int, default=None, help="CPU threads for torch; None leaves torch's own choice.")
        parser.add_argument("--float32_matmul_precision", type=str, default="high", help="highest, high or medium.")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.get("threads"):
            torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision(config.float32_matmul_precision)


def main(args: Sequence[str]) -> int:
    """Run a recipe.

    Args:
        args: the YAML file first, then overrides such as `--trainer.max_steps 100`. A first word `fit`, `validate` or `test`
            chooses another stage.
    """
    args = list(args)
    stage = args.pop(0) if args and args[0] in ("fit", "validate", "test", "predict") else "fit"
    if args and not args[0].startswith("-"):
        path = Path(args[0])
        if not path.is_file():
            shipped = Path(__file__).parent / "configs" / f"{path.stem}.yaml"
            if not shipped.is_file():
                known = ", ".join(sorted(p.stem for p in shipped.parent.rglob("*.yaml")))
                raise ValueError(f"zoo train: no recipe {args[0]}. Give a YAML file, or the name of one that ships: {known}.")
            path = shipped
        args[0:1] = ["--config", str(path)]
    if stage == "fit" and not any(arg.startswith("--ckpt_path") for arg in args):
        args += ["--ckpt_path", "last"]
    RecipeCLI(
        args=[stage, *args],
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [ExportTokenizer(), ExportGenerator()], "use_distributed_sampler": False},
    )
    return 0
