"""What training learned about every training sample."""
