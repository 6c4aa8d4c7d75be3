"""The error tree of `dcaecore`: what a caller did wrong, what is legal, and what to do next.

    DcaeError
      ConfigError      a config, a layout or a setting that cannot be
      CheckpointError  a file that is no checkpoint, is damaged, or holds another model
      DataError        images that are missing, unreadable or too few
      TrainingError    a training that cannot go on (a loss that is not finite)

A broken invariant of our own is an AssertionError instead.
"""

from __future__ import annotations

from typing import Any


class DcaeError(Exception):
    """Base of this package's errors. `message` is one sentence for people; the other fields are for machines and pages."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "bad_input",
        given: Any = None,
        legal: Any = None,
        next: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.given = given
        self.legal = legal
        self.next = next

    def __str__(self) -> str:
        parts = [self.message]
        if self.legal is not None:
            parts.append(f"Legal: {self.legal}.")
        if self.next:
            parts.append(self.next)
        return " ".join(parts)


class ConfigError(DcaeError):
    """A config, layout or setting that cannot be; the message names the field."""


class CheckpointError(DcaeError):
    """A file that is no checkpoint, is damaged, or holds another model."""


class DataError(DcaeError):
    """Images that are missing, unreadable or too few."""


class TrainingError(DcaeError):
    """A training that cannot go on."""
