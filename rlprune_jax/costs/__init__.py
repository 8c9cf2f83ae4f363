"""Costs of pruned networks as functions of their gates."""
