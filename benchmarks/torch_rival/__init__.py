"""Torch-Pruning as a rival: twins of our networks in PyTorch, pruned there, masks carried back.

Needs torch and torch-pruning: ``pip install "rlprune_jax[torch]"``. Nothing else of the repository
reads it.
"""
