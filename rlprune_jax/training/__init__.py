"""Data, augmentation, training loops, recalibration and optimizers."""
