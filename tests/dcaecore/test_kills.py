"""A training that is killed at random moments reaches the bits of one that was not; `python -m tests.kills` does more of them."""

from __future__ import annotations

from tests.kills import run


def test_random_kills_change_no_bit(tmp_path):
    tally = run(2, 1, tmp_path)
    assert tally.kills == 2 and tally.trainings >= 1 and tally.differences == []
