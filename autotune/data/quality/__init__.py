"""Checks of a data set: warnings, statistics, contact sheets."""
