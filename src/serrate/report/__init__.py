"""A saved run as one HTML page: metrics against baselines, curves, lengths, examples; nothing to load."""

from .page import write_report

__all__ = ["write_report"]
