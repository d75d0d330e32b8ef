"""HSTU, pointwise attention with time."""

from .config import HSTUConfig
from .model import HSTU

__all__ = ["HSTU", "HSTUConfig"]
