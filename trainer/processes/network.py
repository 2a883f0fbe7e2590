"""What jax is told about the network between processes that have met already."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

import jax

from trainer.errors import RunError

_NO_PROXY = "no_grpc_proxy"  # As gRPC spells it.


def own_address(sockets: Iterable[socket.socket]) -> str:
    """Return the address of this host at which the other ends of sockets reach it.

    Args:
      sockets: connected with other processes; one on another host counts most.
    """
    addresses = [sock.getsockname()[0].removeprefix("::ffff:") for sock in sockets]
    return min(addresses, key=is_loopback)


def is_loopback(address: str) -> bool:
    """Return whether an address can be reached from its own host only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def bypass_proxies(host: str) -> None:
    """Let jax connect to the coordinator as the roll call did: directly.

    gRPC obeys http_proxy even for an address of this host, and no_grpc_proxy before no_proxy.
    """
    earlier = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy")
    os.environ[_NO_PROXY] = f"{earlier},{host}" if earlier else host
    with contextlib.suppress(AttributeError):  # A warning that there may be proxies.
        jax.config.update("jax_check_proxy_envs", False)


def announce(address: str) -> None:
    """Let the devices of other processes reach those of this one at an address.

    On CPU Gloo asks what the host's own name resolves to: on Debian 127.0.1.1, in a container
    perhaps nothing, on a host of several networks one that the others do not have.

    Args:
      address: of this host, as the others reach it.

    Raises:
      RunError: this version of jax takes no address, and the host's name resolves to one that the
        others cannot reach.
    """
    try:
        from jax._src.lib import _jax

        make = _jax.make_gloo_tcp_collectives
    except (ImportError, AttributeError):
        _check_own_name(address)
        return

    def make_here(*arguments: Any, **options: Any) -> Any:
        return make(*arguments, **options | {"hostname": address})

    _jax.make_gloo_tcp_collectives = make_here


def _check_own_name(address: str) -> None:
    """Refuse a host whose own name leads others astray."""
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError:
        found = "nothing"
    if found == "nothing" or (is_loopback(found) and not is_loopback(address)):
        raise RunError(
            f"the name of this host, {name}, resolves to {found} here, where other hosts cannot "
            f'reach it; write the line "{address} {name}" into /etc/hosts in place of the one that '
            f"says {found}"
        )
