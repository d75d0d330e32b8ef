"""Rows of unequal length as values + offsets: the type that every floor above shares."""

from .batch import EventBatch
from .tensor import JaggedTensor, offsets_from_lengths

__all__ = ["EventBatch", "JaggedTensor", "offsets_from_lengths"]
