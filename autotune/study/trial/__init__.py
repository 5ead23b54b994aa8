"""Build, train and record one trial."""
