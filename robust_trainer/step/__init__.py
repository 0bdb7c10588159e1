"""The optimizer step of a robust method: perturb, decide weights, minimise, record."""
