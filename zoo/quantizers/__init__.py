"""Quantizers: vectors to codes and back, one signature for all (see `base.py`)."""

from zoo.quantizers.base import Quantized, Quantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.usage import UsageMonitor, usage_stats

__all__ = ["FSQ", "Quantized", "Quantizer", "UsageMonitor", "usage_stats"]
