"""Corpora and LightningDataModules that feed the recipes."""

__all__: list[str] = []
