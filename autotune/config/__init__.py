"""The study file: its fields, their rules, how one is read."""
