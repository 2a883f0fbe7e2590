"""A cable between two network namespaces of Linux that delays every packet; runs until killed.

    python slow_cable.py NAMESPACE NAMESPACE SECONDS

Each gets a device `slow`. Not all kernels have netem, which would do the same.
"""

import collections
import ctypes
import fcntl
import os
import selectors
import struct
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000


def main(first: str, second: str, delay: str) -> None:
    """Carry packets."""
    ends = [_open(first), _open(second)]
    print("ready", flush=True)
    on_their_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    selector = selectors.DefaultSelector()
    for i, end in enumerate(ends):
        selector.register(end, selectors.EVENT_READ, ends[1 - i])
    while True:
        due = on_their_way[0][0] - time.monotonic() if on_their_way else None
        for key, _ in selector.select(None if due is None else max(due, 0)):
            packet = os.read(key.fd, 1 << 16)
            on_their_way.append((time.monotonic() + float(delay), key.data, packet))
        while on_their_way and on_their_way[0][0] <= time.monotonic():
            _, end, packet = on_their_way.popleft()
            os.write(end, packet)


def _open(namespace: str) -> int:
    """Make the device in a namespace; return the file of its packets."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"slow", _IFF_TUN | _IFF_NO_PI))
    return end


if __name__ == "__main__":
    main(*sys.argv[1:])
