"""optuna-dashboard with notes, for one user or for others."""
