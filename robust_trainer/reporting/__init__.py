"""What is written and shown: files that are whole or not at all, figures, pages, tables."""
