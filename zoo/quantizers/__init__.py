"""Quantizers: vectors to codes and back, one signature for all (see `base.py`)."""

from zoo.quantizers.base import Quantized, Quantizer
from zoo.quantizers.composed import Grouped, Projected, Residual
from zoo.quantizers.dimension_wise import DimensionWise
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.ibq import IBQ
from zoo.quantizers.lfq import BSQ, LFQ
from zoo.quantizers.residual_fsq import ResidualFSQ
from zoo.quantizers.rvq import RVQ
from zoo.quantizers.simvq import SimVQ
from zoo.quantizers.usage import UsageMonitor, usage_stats
from zoo.quantizers.vq import VQ

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "RVQ",
    "VQ",
    "DimensionWise",
    "Grouped",
    "Projected",
    "Quantized",
    "Quantizer",
    "Residual",
    "ResidualFSQ",
    "SimVQ",
    "UsageMonitor",
    "usage_stats",
]
