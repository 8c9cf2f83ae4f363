"""Weights, plan and StableHLO of a slim network, and their strict restore."""
