"""From scores to the best items: exact top-k with filters."""

from .exact import mask_items, top_k

__all__ = ["mask_items", "top_k"]
