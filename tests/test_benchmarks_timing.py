"""Timing on a CUDA device, with a device in its place that knows how long everything takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import kernels as program
from benchmarks import timing
from benchmarks.cases import Case
from benchmarks.timing import DeviceQueue


class Device:
    """Stands in for ``torch.cuda``: a host that takes `dispatch` seconds a launch, and a device that works them off."""

    def __init__(self, dispatch: float) -> None:
        self.dispatch = dispatch
        self.host = self.free = 0.0  # the time now, and when the device has done what is in its queue
        self.delays: list[int] = []

    def launch(self, seconds: float) -> None:
        self.host += self.dispatch
        self.free = max(self.free, self.host) + seconds

    def synchronize(self) -> None:
        self.host = max(self.host, self.free)

    def _sleep(self, cycles: int) -> None:
        self.delays.append(cycles)
        self.launch(cycles * 0.5e-9)

    def Event(self, *, enable_timing: bool) -> Event:  # noqa: N802
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.time = float("nan")

    def record(self) -> None:
        self.time = max(self.device.host, self.device.free)

    def query(self) -> bool:
        return self.device.host >= self.time

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.time)

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.time - self.time)


def kernels(device: Device, *seconds: float) -> Callable[[], None]:
    def run() -> None:
        for each in seconds:
            device.launch(each)

    return run


def test_only_the_device_is_timed() -> None:
    device = Device(dispatch=8e-6)
    queue = DeviceQueue(device)
    copy, ours = kernels(device, 7e-4), kernels(device, 1e-6, 2e-6, 3e-6)
    for _ in range(3):
        assert queue.seconds(copy, ours) == pytest.approx([7e-4, 6e-6])
    assert len(device.delays) == 3, "the first delay was enough"


def test_a_slow_host_makes_the_delay_longer() -> None:
    device = Device(dispatch=2e-3)
    queue = DeviceQueue(device)
    eager = kernels(device, *[1e-5] * 10)
    assert queue.seconds(eager) == pytest.approx([1e-4])
    assert device.delays[-1] * 0.5e-9 >= 10 * 2e-3
    tries = len(device.delays)
    assert queue.seconds(eager) == pytest.approx([1e-4])
    assert len(device.delays) == tries + 1, "it stays as long"


def test_what_waits_for_the_device_is_timed_all_the_same() -> None:
    device = Device(dispatch=1e-5)

    def reads_a_value() -> None:
        device.launch(1e-6)
        device.synchronize()
        device.launch(1e-6)

    queue = DeviceQueue(device)
    assert queue.seconds(kernels(device, 1e-6)) == pytest.approx([1e-6])
    assert queue.was_enough
    assert queue.seconds(reads_a_value) == pytest.approx([1e-6 + 1e-5 + 1e-6])
    assert len(device.delays) < 12
    assert not queue.was_enough
    queue.seconds(kernels(device, 1e-6))
    assert not queue.was_enough, "an earlier time has the host's part in it"


def test_times_with_the_hosts_part_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(dispatch=1e-5)
    monkeypatch.setattr(timing, "DeviceQueue", lambda: DeviceQueue(device))
    sides = {"ours": kernels(device, 1e-6), "eager": lambda: (device.launch(1e-6), device.synchronize())}
    samples = timing.measure(sides, device=torch.device("cuda"), repeats=3, flush=kernels(device, 1e-4), queued=True)
    marks = {name: sample.as_dict().get("queued") for name, sample in samples.items()}
    assert marks == {"ours": None, "eager": False, "flush": None}

    case = Case("5x64", *[sides["ours"]] * 3, bytes=100)
    ceilings = {"read_bytes_per_s": 1e9, "matmul_flops": 1e9}
    result = program.as_result("relu2", case, "float16", samples, ceilings)
    assert program.as_row(result)["op"] == "relu2 †"
    assert program.notes([result]) == ["† relu2, 5x64: timed with the host's part: eager."]
    result["sides"]["eager"].pop("queued")
    assert program.as_row(result)["op"] == "relu2"
    assert not program.notes([result])
