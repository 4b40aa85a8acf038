"""The report on a comparison: metrics per case, statistics, figures, tables and the page."""
