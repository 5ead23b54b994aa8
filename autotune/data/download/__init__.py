"""Fetch, check and unpack published archives."""
