"""Reproducing the paper: the grid, the sweep, results, tables, figures."""
