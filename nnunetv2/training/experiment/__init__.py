"""An experiment: a checked configuration, the plans derived from it, its optimiser and its learning-rate schedule."""
