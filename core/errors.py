"""The error of `core`: a user's mistake or a refusal, with what was given, what is legal and what to do next."""

from __future__ import annotations

from typing import Any


class CoreError(Exception):
    """Shown in one box by a page, in one line with exit code 2 by the terminal."""

    def __init__(
        self, message: str, *, code: str = "bad_input", given: Any = None, legal: Any = None, next: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.given = given
        self.legal = legal
        self.next = next


def legal_text(legal: Any) -> str:
    """What is legal as people read it: a list's values after commas; empty where there is nothing to tell."""
    if legal is None:
        return ""
    return ", ".join(map(str, legal)) if isinstance(legal, list | tuple | set | frozenset) else str(legal)


def as_error(error: BaseException) -> dict[str, Any] | None:
    """The fields of a user's mistake of any of our packages (`store` and `dcaecore` errors have the same), or None."""
    if not hasattr(error, "code") or not hasattr(error, "legal"):
        return None
    return {
        "code": getattr(error, "code", "bad_input"),
        "message": getattr(error, "message", str(error)),
        "given": getattr(error, "given", None),
        "legal": getattr(error, "legal", None),
        "next": getattr(error, "next", None),
    }
