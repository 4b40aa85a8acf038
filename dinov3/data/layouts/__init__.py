"""How data sets lie on the disk: a module for each layout, and the table of all."""
