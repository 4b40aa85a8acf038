"""Folder structures of data sets: a module for each layout, and the registry of all."""
