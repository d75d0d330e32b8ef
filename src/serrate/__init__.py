"""Serrate: sequence recommenders without padding."""

__version__ = "0.1.0"
