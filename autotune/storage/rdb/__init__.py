"""Optuna's database: connections, retries, locks, heartbeats, and faster statements."""
