"""Look after a storage: copy, check, upgrade, a local server."""
