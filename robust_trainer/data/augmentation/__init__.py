"""What is done to images before and while training: augmentation, squeezing."""
