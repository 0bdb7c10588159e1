"""What is perturbed: norms, PGD, where it enters a model, and the weights."""
