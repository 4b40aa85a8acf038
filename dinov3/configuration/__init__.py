"""Configuration files and the rules that their values keep."""
