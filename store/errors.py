"""The store's error tree: `StoreError`, with the same fields as every package's base error.

Codes in use: read_only, no_store, not_a_database, not_a_store, newer_schema, old_schema, disk_full, busy,
unknown_model, unknown_job, ambiguous, bad_value, bad_state, name_taken, in_use, has_descendants, deleted, missing_blob,
broken_blob, worker_exists, stale_attempt.
"""

from __future__ import annotations

from typing import Any


class StoreError(Exception):
    """A user's mistake or a refusal of the machine: what was wrong, what was given, what is legal, what to do next."""

    def __init__(
        self, message: str, *, code: str = "bad_value", given: Any = None, legal: Any = None, next: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.given = given
        self.legal = legal
        self.next = next

    def to_json(self) -> dict[str, Any]:
        """The `error` object of the terminal's JSON and of a failed job."""
        return {
            "code": self.code,
            "message": self.message,
            "given": self.given,
            "legal": self.legal,
            "next": self.next,
        }
