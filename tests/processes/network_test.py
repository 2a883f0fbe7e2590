"""What others are told of this host's address, and what jax is."""

import socket

import jax._src.lib
import pytest

from trainer.errors import RunError
from trainer.processes import network


class Connected:
    """A socket, as far as its own end is asked for."""

    def __init__(self, own: str) -> None:
        self.own = own

    def getsockname(self) -> tuple[str, int]:
        """Return its own end."""
        return self.own, 1234


@pytest.mark.parametrize(
    ("ends", "address"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.1", "10.0.0.7", "127.0.0.1"], "10.0.0.7"),
        (["::ffff:10.0.0.7"], "10.0.0.7"),
        (["::1", "fe80::1%eth0"], "fe80::1%eth0"),
    ],
)
def test_the_address_at_which_others_reach_this_host(ends: list[str], address: str) -> None:
    assert network.own_address(map(Connected, ends)) == address


def resolve_to(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Let the name of this host resolve to an address, or to nothing; jax takes no other."""

    def gethostbyname(name: str) -> str:
        assert name == "node07"
        if address is None:
            raise socket.gaierror("Name or service not known")
        return address

    monkeypatch.setattr(socket, "gethostname", lambda: "node07")
    monkeypatch.setattr(socket, "gethostbyname", gethostbyname)
    monkeypatch.delattr(jax._src.lib._jax, "make_gloo_tcp_collectives")


@pytest.mark.parametrize("found", ["127.0.1.1", None])
def test_a_name_that_leads_others_astray_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    """With the line that mends it; where jax can be told the address, it is told."""
    resolve_to(monkeypatch, found)
    message = f'node07, resolves to {found or "nothing"} here.*the line "10.0.0.7 node07" into /etc'
    with pytest.raises(RunError, match=message):
        network.announce("10.0.0.7")


@pytest.mark.parametrize(
    ("found", "address"), [("10.0.0.7", "10.0.0.7"), ("127.0.1.1", "127.0.0.1")]
)
def test_a_name_that_leads_nobody_astray(
    monkeypatch: pytest.MonkeyPatch, found: str, address: str
) -> None:
    resolve_to(monkeypatch, found)
    network.announce(address)
