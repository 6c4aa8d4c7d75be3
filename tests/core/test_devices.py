"""Which devices are offered, under which numbers, and what a driver that cannot tell looks like."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from core import devices
from core.devices import default_device, visible_places

UUIDS = ["GPU-aaaa1111", "GPU-aabb2222", "GPU-cccc3333"]


@pytest.mark.parametrize(
    ("setting", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,9,1", [0]),
        ("1,-1,2", [1]),
        ("none", []),
        ("1,1", []),
        ("0,GPU-aaaa", []),
        ("GPU-cccc,0", [2, 0]),
        ("GPU-aabb2222", [1]),
        ("GPU-aa", []),
        ("0,GPU-dddd,1", [0]),
        ("aaaa1111", []),
    ],
)
def test_the_numbers_that_cuda_would_give(setting, places):
    assert visible_places(setting, UUIDS) == places


class Refused(Exception):
    """NVML's error."""


class Driver:
    """Stands for NVML, which needs a GPU."""

    NVMLError = Refused

    def __init__(self, mute: bool = False, lost: bool = False) -> None:
        self.mute, self.lost = mute, lost

    def nvmlDeviceGetCount(self):
        if self.lost:
            raise Refused
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return self.tell(SimpleNamespace(used=handle * 10, total=100))

    def nvmlDeviceGetUtilizationRates(self, handle):
        return self.tell(SimpleNamespace(gpu=50 + handle))

    def nvmlDeviceGetName(self, handle):
        return self.tell(f"board {handle}")

    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return self.tell(40 + handle + sensor)

    def nvmlDeviceGetPowerUsage(self, handle):
        raise Refused  # as boards without a meter do

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.tell([7 + handle, 5])

    def tell(self, answer):
        if self.mute:
            raise Refused
        return answer


def test_each_gpu_is_told_under_its_number_with_its_own_load(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    first, second = devices._gpus(Driver())
    assert (first.name, first.title, first.free_bytes, first.busy_ratio) == ("cuda:0", "board 2", 80, 0.52)
    assert (second.name, second.title, second.used_bytes, second.busy_ratio) == ("cuda:1", "board 1", 10, 0.51)


def test_a_driver_that_cannot_tell_is_nought_and_one_that_is_lost_offers_nothing(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices._gpus(Driver(mute=True))
    assert [device.name for device in found] == ["cuda:0", "cuda:1", "cuda:2"]
    assert {(device.title, device.total_bytes, device.free_bytes, device.busy_ratio) for device in found} == {
        ("NVIDIA GPU", 0, 0, 0.0)
    }
    assert devices._gpus(Driver(lost=True)) == devices._gpus(None) == []


def test_what_a_gpu_bears_is_told_as_far_as_its_driver_can(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setattr(devices, "_nvml", Driver)
    told = devices.gpu_figures("cuda:0")
    assert told == {"gpu_busy_ratio": 0.52, "gpu_memory_gib": 20 / 2**30, "gpu_temperature_c": 42.0}
    assert devices.gpu_figures("cuda:1") == devices.gpu_figures("cpu") == {}
    for driver in (lambda: Driver(mute=True), lambda: Driver(lost=True), lambda: None):
        monkeypatch.setattr(devices, "_nvml", driver)
        assert devices.gpu_figures("cuda:0") == {}


@pytest.fixture
def forget():
    """What was found out about torch is forgotten before and after."""
    devices.torch_uses_gpus.cache_clear()
    yield devices.torch_uses_gpus.cache_clear
    devices.torch_uses_gpus.cache_clear()


def test_gpus_come_first_but_only_where_torch_can_use_them(monkeypatch, forget):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_nvml", Driver)
    for version, names in (("2.13.0", ["cuda:0", "cuda:1", "cuda:2", "cpu"]), ("2.13.0+cpu", ["cpu"])):
        monkeypatch.setattr(devices, "version", lambda _name, version=version: version)
        forget()
        found = devices.devices()
        assert [device.name for device in found] == names
        assert default_device("auto") == names[0] and default_device("cpu") == "cpu"
    cpu = found[-1]
    assert 0 < cpu.used_bytes < cpu.total_bytes and 0 <= cpu.busy_ratio <= 1 and "CPU" in cpu.title


def test_2_4_kernels_need_an_ampere_or_newer(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_nvml", Driver)
    told = [devices.why_no_sparse_kernels(name) for name in ("cuda:0", "cuda:1", "cuda:2", "cpu")]
    assert told == ["cuda:0 has compute capability 7.5", None, None, "cpu is no NVIDIA GPU"]
    monkeypatch.setattr(devices, "_nvml", lambda: Driver(mute=True))
    assert devices.why_no_sparse_kernels("cuda:0") is None, "the job will find out"
