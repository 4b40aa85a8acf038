"""An experiment: configuration → derived plans; what is checked before a training, and its files."""
