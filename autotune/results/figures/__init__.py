"""Plots of a study."""
