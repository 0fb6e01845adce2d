"""Measuring tokenizers: scorers, versioned protocols, and the result files that the leaderboard reads."""

__all__: list[str] = []
