"""The evaluations of the reference that this package has."""
