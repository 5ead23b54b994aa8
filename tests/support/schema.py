"""Tables as an older Optuna has left them."""

from __future__ import annotations

import sqlalchemy

from autotune.storage.url import parse_url

OLDER = "v3.0.0.d"


def downgrade(url: str) -> None:
    """Take back the last step that Optuna's tables have made: an index on ``trials``."""
    engine = sqlalchemy.create_engine(parse_url(url))
    with engine.begin() as connection:
        for index in sqlalchemy.inspect(connection).get_indexes("trials"):
            connection.exec_driver_sql(f"DROP INDEX {index['name']}")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{OLDER}'")
    engine.dispose()
