"""Data sets: columns, labels, images as arrays, splits, positions and keyed random numbers."""
