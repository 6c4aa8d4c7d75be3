"""Schema revisions, run by alembic from the program itself (there is no alembic.ini and no command to remember).

`REVISIONS` names them oldest first without importing alembic, which costs 0.2 s and is needed only when there is work.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection

REVISIONS = ("0001", "0002")
HEAD = REVISIONS[-1]

# alembic keeps its current context in module globals: one upgrade at a time in a process.
_lock = threading.Lock()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run what is missing up to `revision` inside the connection's open transaction: all of it or nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _lock:
        command.upgrade(config, revision)
