"""One YAML file per experiment."""
