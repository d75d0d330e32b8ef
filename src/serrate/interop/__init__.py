"""Calls as other libraries spell them, answered by ours: switch by the import alone."""

from .attention import flash_attn_varlen_func, nested_attention, varlen_attn

__all__ = ["flash_attn_varlen_func", "nested_attention", "varlen_attn"]
