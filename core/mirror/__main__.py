"""`python -m core.mirror SETTINGS_JSON`: one sync, as `core.mirror.launch` starts it; its log is its only output."""

from __future__ import annotations

import json
import sys

from core.errors import as_error
from core.mirror.replay import sync
from core.settings import Settings
from store import open_store


def main() -> int:
    """0 when everything was sent, 1 else."""
    settings = Settings.model_validate_json(sys.argv[1])
    store = open_store(settings.home, create=False)
    try:
        report = sync(store, settings.mirror, project=settings.wandb_project, wait=True)
        said, problem = report.to_json(), report.problem
    except Exception as error:  # the mirror's boundary: what broke stands in its log, and the next sync tries again
        said = problem = as_error(error) or {"code": "bug", "message": f"{type(error).__name__}: {error}"}
    finally:
        store.close()
    sys.stderr.write(json.dumps(said, default=str) + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
