"""Kernels of plain self-attention for Hopper, in Gluon: loads and products spelled out, forward and backward.

Imported only where `plan.py` finds them usable, as Gluon changes between versions of Triton.
"""
