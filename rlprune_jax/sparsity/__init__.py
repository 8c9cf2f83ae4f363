"""Pruning of single weights: masks, selection, PQ Index, pruners, updates that stay masked."""
