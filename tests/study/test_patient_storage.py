"""How PatientStorage behaves when the server drops connections."""

from typing import Any

import optuna
import sqlalchemy

from smnas_optuna.study.storage import open_storage
from tests.servers import PostgreSQL


def test_reading_trials_survives_a_lost_connection(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database()
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="any")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    other = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    lost: list[str] = []

    @sqlalchemy.event.listens_for(storage.engine, "before_cursor_execute")
    def lose(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not lost and "FROM trials" in statement:
            lost.append(statement)
            pid = connection.connection.driver_connection.info.backend_pid
            with other.connect() as killer:
                killer.execute(sqlalchemy.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    assert len(optuna.load_study(storage=storage, study_name="any").get_trials(deepcopy=False)) == 3
    assert lost
    other.dispose()
