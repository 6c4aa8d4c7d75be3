"""Golden losses: a change of the training loop that moves them must be meant."""

from __future__ import annotations

import json

import pytest

from tests.golden import FILE, losses


def test_the_losses_of_twenty_steps_are_those_on_record():
    found = losses()
    assert found == pytest.approx(json.loads(FILE.read_text()), rel=1e-3)
    assert len(found) == 20 and found[-1] < 0.8 * found[0]
