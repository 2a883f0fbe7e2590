"""How much memory there is for a run: what jax says of the devices, and the system of the host."""

import contextlib
import dataclasses
import os
import socket
from pathlib import Path

from jax.sharding import Mesh

from trainer import processes

_CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Free memory in bytes; None where nobody tells.

    Attributes:
      device: of a device with memory of its own. Virtual devices of a CPU have none: theirs is the
        host's.
      host: of a process.
    """

    device: int | None
    host: int | None


def measure_memory(mesh: Mesh) -> Memory:
    """Return the free memory of the device and of the process that have the least.

    Args:
      mesh: the devices; all processes call this together.
    """
    found = {"host": socket.gethostname(), "device": _of_devices(mesh), "free": _of_host()}
    all_found = processes.gather(found)
    neighbours = {
        one["host"]: sum(o["host"] == one["host"] for o in all_found) for one in all_found
    }
    hosts = [one["free"] // neighbours[one["host"]] for one in all_found if one["free"] is not None]
    of_devices = [one["device"] for one in all_found if one["device"] is not None]
    return Memory(min(of_devices, default=None), min(hosts, default=None))


def _of_devices(mesh: Mesh) -> int | None:
    """Return what is left on the fullest of this process's devices."""
    found = [device.memory_stats() or {} for device in mesh.local_devices]
    free = [each["bytes_limit"] - each["bytes_in_use"] for each in found if "bytes_limit" in each]
    return min(free, default=None)


def _of_host() -> int | None:
    """Return the bytes that the system, and the container if this is one, could still give."""
    found = [free for free in (_of_system(), *_of_containers()) if free is not None]
    return max(0, min(found)) if found else None


def _of_system() -> int | None:
    """Return what Linux calls available, elsewhere all memory of the machine."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_containers() -> list[int]:
    """Return what is left below the limit of the control group, version 2 or 1, if there is one."""
    names = {
        _CGROUP: ("memory.max", "memory.current", "inactive_file"),
        _CGROUP / "memory": (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    }
    found = []
    for folder, (limit, usage, cache) in names.items():
        # Without a limit the file says "max".
        with contextlib.suppress(OSError, ValueError):
            free = int((folder / limit).read_text()) - int((folder / usage).read_text())
            # Pages of files that were read, which the kernel gives up first.
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(free + int(stat.get(cache, 0)))
    return found
