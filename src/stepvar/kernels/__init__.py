"""Fused operations: on a GPU one Triton kernel each, elsewhere plain PyTorch of the same signature.

The Triton modules are imported where they are first needed; a machine without Triton never imports them.
"""
