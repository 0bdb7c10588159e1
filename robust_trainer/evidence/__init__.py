"""What is known of labels before training: neighbours, a linear model, near-duplicates."""
