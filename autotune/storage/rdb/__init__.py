"""Optuna's database: connections, retries, locks, heartbeats, fast statements."""
