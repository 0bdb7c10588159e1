"""Models: networks side by side, heads, features, modes; small models from scratch."""
