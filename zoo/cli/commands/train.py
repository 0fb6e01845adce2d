"""Run a recipe of recipes/configs, or a YAML file of your own."""

import sys

__all__ = ["pass_on"]

_HELP = """usage: zoo train [fit|validate|test] RECIPE [--OPTION VALUE ...]

Run a recipe: a YAML file, or the name of one that ships with the package. A run that was stopped goes on from its last checkpoint
when it is started again. The trained tokenizer is written to <run>/tokenizer, which `zoo encode`, `zoo push` and zoo.load take.

Any value of the YAML can be overridden by its path:
  zoo train kl_vae_nano --trainer.max_steps 100 --data.init_args.batch_size 8
  zoo train flextok_nano --trainer.devices 8 --trainer.num_nodes 4

  -h, --help             show this text
  RECIPE --help          all options of training (long)
  RECIPE --print_config  the YAML with every default filled in

recipes that ship: {recipes}
"""


def pass_on(argv: list[str]) -> int:
    """Hand over to `recipes.train.main`."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_HELP.format(recipes=", ".join(_recipes())))
        return 0
    import logging

    logging.getLogger("recipes").setLevel(logging.INFO)
    from recipes.train import main

    return main(argv)


def _recipes() -> list[str]:
    from importlib.resources import files

    names = (path.name for path in files("recipes").joinpath("configs").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
