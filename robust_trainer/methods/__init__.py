"""Published methods as rows of parts and settings."""
