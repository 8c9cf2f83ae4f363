"""Pruning of JAX networks by constrained reinforcement learning and by their own sparsity."""
