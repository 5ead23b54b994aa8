"""The command line: one module per verb; what is heavy is imported when a verb runs."""
