"""What W&B says when it does not take a run, as one of a few errors of ours: what it means, and what to do next.

W&B answers with HTTP statuses inside sentences of several libraries; the words looked for are those of wandb 0.31.
"""

from __future__ import annotations

import re

from core.errors import CoreError
from core.mirror.modes import GONE, UNREACHABLE

KEY, RIGHTS, NAME, QUOTA, PARTIAL = "mirror_key", "mirror_rights", "mirror_name", "mirror_quota", "mirror_partial"
FOR_ALL = (UNREACHABLE, KEY, RIGHTS, NAME)
"""Codes of errors that every other run would meet too."""
_WAITS = "Nothing is lost: the run waits in the store."

_KNOWN: tuple[tuple[str, str, str, str, str], ...] = (
    (
        r"previously (created and )?deleted|\b409\b",
        GONE,
        "The run was deleted at W&B, which takes no run of this id again",
        "a run that W&B still has",
        "It is whole here and is not sent there again; another project (OFFSHOOT_WANDB_PROJECT) would get it.",
    ),
    (
        r"quota|storage limit|exceed(s|ed).*(limit|storage|size)|\b402\b|\b413\b",
        QUOTA,
        "W&B has no room for it",
        "an artifact within the account's storage quota",
        f"Free storage at W&B or raise the quota. {_WAITS}",
    ),
    (
        r"\b401\b|not logged in|unauthori[sz]ed|api[ _-]?key.*(invalid|not|must|length)|invalid.*api[ _-]?key|could not authenticate",
        KEY,
        "W&B does not know the key of this machine",
        "the key of a W&B account of this server",
        f"Run `wandb login --relogin`, or correct WANDB_API_KEY. {_WAITS}",
    ),
    (
        r"\b403\b|permission|forbidden|access denied|not allowed",
        RIGHTS,
        "The W&B account may not write to the project",
        "an account with the right to write (WANDB_ENTITY names the team)",
        f"Ask the project's owner for access, or choose another project. {_WAITS}",
    ),
    (
        r"invalid project name|invalid (entity|project|name)|cannot contain characters|\b(400|422)\b.*name",
        NAME,
        "W&B refuses the name of the project or team",
        "1 to 128 characters, none of / \\ # ? % :",
        f"Choose another project. {_WAITS}",
    ),
)  # fmt: skip


def refusal(error: BaseException, given: object, *, at_start: bool) -> CoreError | None:
    """The error that W&B's words stand for; None for words that are not known, and that came while a run was being filled.

    `at_start`: W&B did not even open the run, so unknown words mean that it cannot be reached.
    """
    said = first_line(error)
    for pattern, code, meaning, legal, then in _KNOWN:
        if re.search(pattern, str(error), re.IGNORECASE):
            return CoreError(f"{meaning}: {said}", code=code, given=given, legal=legal, next=then)
    if not at_start:
        return None
    return CoreError(
        f"W&B cannot be reached, or refuses: {said}",
        code=UNREACHABLE,
        given=given,
        legal="a W&B server that answers, and a key with rights to the project",
        next="Nothing is lost: the runs wait in the store. Check network and key, then sync again.",
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's words."""
    return next(iter(str(error).strip().splitlines()), "no reason given")
