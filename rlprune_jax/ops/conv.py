"""Convolution lowered for the backend and shape (placeholder until the worker's file lands)."""

from jax.lax import conv_general_dilated

__all__ = ["conv_general_dilated"]
