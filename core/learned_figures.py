"""Figures that need published weights: whether they are on, and if not, why. No torch."""

from __future__ import annotations

from pathlib import Path

LPIPS_FILES = ("alexnet-owt-7be5be79.pth", "alex.pth")
RFID_FILES = ("pt_inception-2015-12-05-6726825d.pth",)
LEARNED = {"lpips": ("LPIPS", LPIPS_FILES), "rfid": ("rFID", RFID_FILES)}


def why_off(folder: Path) -> dict[str, str]:
    """Figure -> the reason why it is off; what is on is not in it."""
    found = {}
    for key, (title, files) in LEARNED.items():
        lacking = [name for name in files if not (folder / name).is_file()]
        if lacking:
            found[key] = f"{title} is off: {folder.resolve()} has no {' and no '.join(lacking)}."
    return found
