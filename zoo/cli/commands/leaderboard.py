"""Build the site of all results: tables, plots and a page for each tokenizer."""

__all__ = ["pass_on"]


def pass_on(argv: list[str]) -> int:
    """Hand over to `eval.leaderboard.command.main`."""
    from eval.leaderboard.command import main

    return main(argv)
