"""Where things lie and how the service behaves: option > environment (`OFFSHOOT_*`) > `offshoot.toml` > default.

Every variable stands in `.env.example`, which a test holds complete.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from core.errors import CoreError


class Settings(BaseSettings):
    """All settings; paths may be relative to the working directory."""

    model_config = SettingsConfigDict(env_prefix="OFFSHOOT_", toml_file="offshoot.toml", extra="forbid")

    home: Path = Field(Path("offshoot-home"), description="The store's folder: database, weights, job logs.")
    device: str = Field("auto", description="Device of new jobs: cpu, cuda:0, or auto (the first GPU, else cpu).")
    data_dir: Path | None = Field(None, description="Sample sets and cached hub rows; default: data in the store's folder.")
    weights_dir: Path = Field(Path("weights"), description="Folder that the page's file browser shows.")
    num_threads: int = Field(0, ge=0, description="CPU threads of a job; 0 takes all cores.")
    worker_idle_s: float = Field(1800.0, gt=0, description="A worker without jobs ends after this many seconds.")
    pause_release_s: float = Field(60.0, ge=0, description="A paused job leaves the device after this many seconds.")
    cancel_release_s: float = Field(
        10.0, ge=0, description="A cancelled job that does not answer is stopped after this many seconds."
    )
    heartbeat_timeout_s: float = Field(300.0, gt=0, description="A job without a sign of life for this long is stopped.")
    mirror: Literal["auto", "off", "offline", "online"] = Field("auto", description="Weights & Biases mirror mode.")
    wandb_project: str = Field("offshoot", description="Weights & Biases project of the mirror.")
    rendezvous: str = Field(
        "", description="HOST:PORT at which other machines find this one, for trainings that several machines share."
    )
    report_url: str = Field("", description="Where bugs are reported: a link in the sidebar.")
    preset_image_size: int = Field(128, ge=16, description="Image size of the three-click presets, px.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def data_folder(self) -> Path:
        return self.data_dir or self.home / "data"


def read_settings(**given: Any) -> Settings:
    """Settings from options, the environment and `offshoot.toml`; raises CoreError that names what is wrong and where."""
    try:
        return Settings(**given)
    except tomllib.TOMLDecodeError as error:
        raise CoreError(f"offshoot.toml is no valid TOML: {error}", code="settings", next="Correct the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if name not in Settings.model_fields:
            raise CoreError(
                f"There is no setting {name!r}.", code="settings", given=name, legal=sorted(Settings.model_fields),
                next="Correct offshoot.toml.",
            ) from error  # fmt: skip
        raise CoreError(
            f"The setting {name} is wrong: {first['msg']}.",
            code="settings",
            given=first.get("input"),
            legal=Settings.model_fields[name].description,
            next=f"Correct the option, OFFSHOOT_{name.upper()} in the environment, or offshoot.toml.",
        ) from error
