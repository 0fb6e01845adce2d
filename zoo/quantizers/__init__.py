"""Quantizers: vectors to codes and back, one signature for all (see `base.py`)."""

from zoo.quantizers.base import Quantized, Quantizer
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.rvq import RVQ
from zoo.quantizers.usage import UsageMonitor, usage_stats
from zoo.quantizers.vq import VQ

__all__ = ["FSQ", "RVQ", "VQ", "Quantized", "Quantizer", "UsageMonitor", "usage_stats"]
