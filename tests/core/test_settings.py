"""Settings: who wins, and one clear message for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import CoreError
from core.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a file, and an environment without our variables."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"OFFSHOOT_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_option_beats_environment_beats_file_beats_default(monkeypatch):
    assert read_settings().num_threads == 0
    Path("offshoot.toml").write_text('num_threads = 1\ndevice = "cpu"\n')
    assert read_settings().num_threads == 1
    monkeypatch.setenv("OFFSHOOT_NUM_THREADS", "2")
    assert read_settings().num_threads == 2
    found = read_settings(num_threads=3)
    assert found.num_threads == 3 and found.device == "cpu"


def test_data_lies_in_the_store_unless_said(tmp_path):
    assert read_settings(home=tmp_path).data_folder == tmp_path / "data"
    assert read_settings(home=tmp_path, data_dir=tmp_path / "x").data_folder == tmp_path / "x"


@pytest.mark.parametrize(
    ("name", "value"), [("num_threads", "-1"), ("num_threads", "many"), ("mirror", "maybe"), ("worker_idle_s", "0")]
)
@pytest.mark.parametrize("place", ["option", "environment", "file"])
def test_a_wrong_value_is_named_with_where_to_correct_it(monkeypatch, name, value, place):
    if place == "environment":
        monkeypatch.setenv(f"OFFSHOOT_{name.upper()}", value)
    if place == "file":
        Path("offshoot.toml").write_text(f'{name} = "{value}"\n')
    with pytest.raises(CoreError, match=f"setting {name} is wrong") as caught:
        read_settings(**({name: value} if place == "option" else {}))
    error = caught.value
    assert (error.code, error.given, error.legal) == ("settings", value, Settings.model_fields[name].description)
    assert f"OFFSHOOT_{name.upper()}" in error.next


def test_a_setting_that_is_none_and_a_file_that_is_no_toml():
    Path("offshoot.toml").write_text("hom = 'x'\n")
    with pytest.raises(CoreError, match="no setting 'hom'") as caught:
        read_settings()
    assert "home" in caught.value.legal and caught.value.given == "hom"
    Path("offshoot.toml").write_text("home = \n")
    with pytest.raises(CoreError, match="no valid TOML") as caught:
        read_settings()
    assert caught.value.code == "settings" and caught.value.next
