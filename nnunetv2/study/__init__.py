"""Studies: the runs of a comparison of experiments, where they run, and the report on them."""
