"""Wrong labels and wrong regression targets."""
