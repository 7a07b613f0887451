"""Make the small real study that the notebooks open: what ``make demo`` has found, without what is this machine's.

python notebooks/ship_study.py demo.db notebooks/demo_study.db
"""

import sqlite3
import sys
from pathlib import Path

# Names of hosts and of files that do not travel along.
_OF_THIS_MACHINE = (
    "DELETE FROM trial_user_attributes WHERE key = 'worker'",
    "DELETE FROM trial_system_attributes WHERE key LIKE 'artifacts:%'",
    "DELETE FROM trial_heartbeats",
)


def main() -> None:
    """Copy the database named first to the one named second."""
    source, target = map(Path, sys.argv[1:])
    target.unlink(missing_ok=True)
    connection = sqlite3.connect(source)
    connection.execute("VACUUM INTO ?", (str(target),))
    connection.close()
    connection = sqlite3.connect(target)
    for statement in _OF_THIS_MACHINE:
        connection.execute(statement)
    connection.commit()
    # One file alone, which may be opened where it cannot be written.
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("VACUUM")
    connection.close()


if __name__ == "__main__":
    main()
