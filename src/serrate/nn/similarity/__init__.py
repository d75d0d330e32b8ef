"""How queries meet items: similarities whose two sides are computed apart and can be kept."""

from .base import Sides, Similarity, take
from .dot import DotProduct
from .mixture import MixtureOfLogits, MixtureOptions, balance

__all__ = ["DotProduct", "MixtureOfLogits", "MixtureOptions", "Sides", "Similarity", "balance", "take"]
