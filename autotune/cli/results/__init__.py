"""Verbs about the results of a study."""
