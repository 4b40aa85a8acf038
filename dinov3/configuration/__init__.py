"""Configuration files, and the checks of their values."""
