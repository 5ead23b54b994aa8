"""Work on a storage as a whole: copy, check, upgrade, and a local Postgres server."""
