"""Allocator settings do what they say, or nothing; memory given back comes back from the file, and nothing is lost."""

import resource
import sys
from pathlib import Path

import pytest
import torch
from forked_processes import start_process
from safetensors import safe_open
from safetensors.torch import save_file

from circuits import memory
from circuits.memory import MappedFiles


def count_faults(setting: str) -> None:
    """Prints how often memory of the system is mapped anew under a setting."""
    getattr(memory, setting)()
    for _ in range(4):
        torch.ones(40 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(40 << 20, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_kept_memory_is_not_mapped_anew(tmp_path: Path) -> None:
    faults = {}
    for setting in ("keep_freed_memory", "return_freed_memory"):
        process = start_process(count_faults, setting, output=tmp_path / setting)
        process.join()
        faults[setting] = int((tmp_path / setting).read_text())
    assert faults["keep_freed_memory"] < 0.3 * faults["return_freed_memory"]


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the mapping the tensor lies in that are in memory."""
    inside, address = False, tensor.data_ptr()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return 1024 * int(line.split()[1])
    raise AssertionError("no mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps")
def test_mapped_weights_are_given_back_and_come_back(tmp_path: Path) -> None:
    whole = torch.randn(1 << 20)
    save_file({"w": whole}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        mapped = file.get_tensor("w")
    assert torch.equal(mapped, whole)
    before = resident(mapped)
    MappedFiles().give_back([mapped, whole, whole[::2], torch.zeros(1 << 20)])
    assert resident(mapped) < before // 10
    assert torch.equal(mapped, whole)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps")
def test_what_was_written_is_kept(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1 << 20)}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        mapped = file.get_tensor("w")
    mapped += 1
    own = torch.full((1 << 20,), 2.0)
    MappedFiles().give_back([mapped, own])
    assert bool((mapped == 1).all())
    assert bool((own == 2).all())
