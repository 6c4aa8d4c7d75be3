"""`python -m core.mirror SETTINGS_JSON`: a follower, as `ensure_follower` starts it; the mirror's log is its only output."""

from __future__ import annotations

import os
import sys

from core.errors import as_error
from core.mirror.following import follow, note_end
from core.settings import Settings
from store import open_store


def main() -> int:
    """0 when there was nothing left to wait for, 1 else."""
    os.nice(10)  # jobs go before it
    settings = Settings.model_validate_json(sys.argv[1])
    store = open_store(settings.home, create=False)
    try:
        follow(store, settings)
    except Exception as error:  # the mirror's boundary: what broke stands in its log, and the next follower tries again
        sys.stderr.write(note_end(error))
        if as_error(error) is None:
            raise
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
