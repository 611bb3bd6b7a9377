"""The address of a request's client, behind proxies that are trusted (RFC 7239, or X-Forwarded-For).

The rules:

1. One header is read, the one that the settings name. Whoever sends the other one changes nothing.
2. The chain is the header's entries and then the peer. It is read from the right: an entry that a trusted proxy wrote
   is true, and what stands left of an untrusted address may be anything.
3. The first address from the right that is not trusted is the client. If all are trusted, it is the leftmost.
4. With `hops`, that many entries from the right are proxies, whatever their addresses: for a unix socket, which has no
   peer address.
5. If the entry there is malformed, `unknown`, a pseudonym or missing, nobody knows the client. The event then has the
   peer's address, and says so in `source`.
6. A server may have replaced the peer by an entry of X-Forwarded-For, as uvicorn does by default for 127.0.0.1. That
   is no peer of ours, so it is never a trusted proxy, and its source is `server`: the server's settings vouch for it.
7. An IPv4 address mapped into IPv6 is that IPv4 address. Ports and zones are cut.

The rules of RFC 7239 are those of the package `forwarded` 1.0, the oracle of the tests.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final, Literal

from custody.emit.request import Headers, header_lines
from custody.errors import ConfigurationError
from custody.format.patterns import possessive

__all__ = ["Client", "Proxies"]

Source = Literal["forwarded", "xff", "peer", "server", "unknown"]
Header = Literal["forwarded", "x-forwarded-for"]

NO_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - no socket is bound to it
"""The address of a client of which nothing is known, not even a peer. Its source is `unknown`."""
HEADER_CHARACTERS: Final = 65_536
"""Characters of the header's lines together. A longer header is not read: the client is unknown."""
CHAIN: Final = 100
"""Entries that are read, from the right. If all of them are trusted, and there are more, the client is unknown."""

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network
_MAPPED = IPv6Network("::ffff:0:0/96")

_ENTRY_CHARACTERS = 200
"""More than any address has, with its zone and port: what is longer takes no memory in the cache."""
_SPACE = " \t"
_PAIR = re.compile(r"[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+=[ \t]*+")
_IN_STRING = possessive(r'[^"\\]|\\.')
_QUOTED = re.compile(rf'"({_IN_STRING})"[ \t]*+(?=[;,]|\Z)', re.DOTALL)
_TOKEN = re.compile(r"[^;,]*+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_V4 = re.compile(rf"([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}){_PORT}", re.ASCII)
_V6 = re.compile(rf"\[([0-9A-Fa-f:.]{{2,45}})(?:%[A-Za-z0-9._~%-]{{1,64}})?\]{_PORT}", re.ASCII)
_BARE_V6 = re.compile(r"([0-9A-Fa-f:.]{2,45})(?:%[A-Za-z0-9._~%-]{1,64})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Client:
    """A client's address, and where it is from.

    Attributes:
        ip: an IPv4 or IPv6 address.
        source: the header, or `peer`: the client connected to us itself. `server`: the server has read a header.
            `unknown`: `ip` is the peer's, a proxy.
    """

    ip: str
    source: Source


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected to the server.

    Attributes:
        address: its address; None for a unix socket.
        replaced: whether the server took the address from a header instead.
    """

    address: str | None
    replaced: bool = False

    @classmethod
    def of(cls, client: Sequence[Any] | None, headers: Headers) -> "Peer":
        """Return the peer of an ASGI scope's `client` and `headers`.

        No connection has the port 0: a server writes it beside an address from a header. If the header had a port, it
        writes that, and then the entry is in the header.
        """
        if not client:
            return cls(None)
        address, port = client[0], client[1]
        if not port:
            return cls(address, replaced=True)
        for name, value in headers:
            if name == b"x-forwarded-for":
                entries = (f"{address}:{port}".encode(), f"[{address}]:{port}".encode())
                if any(entry in value for entry in entries):
                    return cls(address, replaced=True)
        return cls(address)


class Proxies:
    """The proxies that are trusted, and what they say of their clients.

    Args:
        trusted: addresses and networks of proxies.
        hops: how many proxies there are, instead of their addresses.
        header: the header that they write.

    Raises:
        ConfigurationError: an address or a number cannot be used, or both are given.
    """

    def __init__(
        self, trusted: Iterable[str] = (), *, hops: int | None = None, header: Header = "x-forwarded-for"
    ) -> None:
        if isinstance(trusted, str):
            raise ConfigurationError(f"trusted proxies are a list of addresses and networks, not one text: {trusted!r}")
        if header not in {"forwarded", "x-forwarded-for"}:
            raise ConfigurationError(f"the header of proxies is 'forwarded' or 'x-forwarded-for', not {header!r}")
        self._networks = tuple(_network(text) for text in trusted)
        if hops is not None and not 1 <= hops < CHAIN:
            raise ConfigurationError(f"hops is {hops}, and may be 1 to {CHAIN - 1}")
        if hops is not None and self._networks:
            raise ConfigurationError("trusted proxies and hops are both given: give one of them")
        self._hops = hops or 0
        self._header = header

    @property
    def any(self) -> bool:
        """Whether any proxy is trusted."""
        return self._hops > 0 or bool(self._networks)

    def require_peer(self, peer: str | None) -> None:
        """Check that clients can be told apart, at the first request: over a unix socket, `hops` is needed.

        Raises:
            ConfigurationError: the peer has no address, and `hops` is not set.
        """
        if not self._hops and _address(peer) is None:
            raise ConfigurationError(
                "the server listens on a unix socket, so its peer has no address: set hops to the number of proxies"
                " in front of it"
            )

    def trusts(self, peer: Peer) -> bool:
        """Return whether the peer is a proxy that is trusted, so that what it adds to a request is true."""
        return self._hops > 0 or (not peer.replaced and self._trusted(_address(peer.address)))

    def client(self, peer: Peer, headers: Headers) -> Client:
        """Return the client of a request. It never fails: whoever sends a header may write anything into it.

        Args:
            peer: where the connection came from.
            headers: the request's headers.
        """
        direct = _address(peer.address)
        fallback = Client(NO_ADDRESS if direct is None else str(direct), "unknown")
        if not self.trusts(peer):
            return fallback if direct is None else Client(str(direct), "server" if peer.replaced else "peer")
        entries = self._entries(headers)
        if entries is None:
            return fallback
        position, address = self._walk([direct, *map(_address, reversed(entries))])
        if address is None or position > CHAIN:
            return fallback
        if position == 0:
            return Client(str(address), "peer")
        return Client(str(address), "forwarded" if self._header == "forwarded" else "xff")

    def _walk(self, chain: Sequence[_Address | None]) -> tuple[int, _Address | None]:
        """Return which entry of a chain is the client, counted from the peer, and its address if that is known."""
        if self._hops:
            return self._hops, chain[self._hops] if self._hops < len(chain) else None
        all_trusted = len(chain) - 1
        position = next((at for at, address in enumerate(chain) if not self._trusted(address)), all_trusted)
        return position, chain[position]

    def _trusted(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _entries(self, headers: Headers) -> list[str | None] | None:
        """Return the header's last entries, one more than may be read; None if the header is too long."""
        lines = header_lines(headers, self._header.encode())
        if sum(map(len, lines)) > HEADER_CHARACTERS:
            return None
        last: deque[str | None] = deque(maxlen=CHAIN + 1)
        for line in lines:
            if self._header == "forwarded":
                last.extend(forwarded_for(line))
            else:
                last.extend(entry for part in line.split(",") if (entry := part.strip(_SPACE)))
        return list(last)


def forwarded_for(line: str) -> list[str | None]:
    """Return the `for` of each element of a line of `Forwarded`; None where it has none, or is malformed.

    A quoted text begins only where a value does. If one has no end, the next element begins behind the first comma in
    it: so a client cannot hide what a proxy wrote behind its text.
    """
    values: list[str | None] = []
    at = 0
    while at < len(line):
        pairs, end, valid = _element(line, at)
        if pairs or not valid:
            values.append(pairs.get("for") if valid else None)
        at = end + 1
    return values


def _element(line: str, at: int) -> tuple[dict[str, str], int, bool]:
    """Return an element's pairs, where its comma or the line's end is, and whether all of it is as it should be."""
    pairs: dict[str, str] = {}
    valid = True
    while True:
        while line[at : at + 1] in {";", " ", "\t"}:
            at += 1
        if at >= len(line) or line[at] == ",":
            return pairs, at, valid
        head = _PAIR.match(line, at)
        if head is None:
            valid = False
            at = _end(line, at)
            continue
        at = head.end()
        quoted = line[at : at + 1] == '"'
        value = (_QUOTED if quoted else _TOKEN).match(line, at)
        if value is None:
            comma = line.find(",", at)
            return pairs, len(line) if comma < 0 else comma, False
        at = value.end()
        text = _ESCAPE.sub(r"\1", value[1]) if quoted else value[0].strip(_SPACE)
        name = head[1].lower()
        valid = valid and name not in pairs and (quoted or text != "")
        pairs[name] = text


def _end(line: str, at: int) -> int:
    match = _TOKEN.match(line, at)
    return len(line) if match is None else match.end()


def _address(text: str | None) -> _Address | None:
    """Return the address of an entry, without port and zone; None if it is not one."""
    return _parse(text) if text is not None and len(text) <= _ENTRY_CHARACTERS else None


@lru_cache(maxsize=4_096)
def _parse(text: str) -> _Address | None:
    try:
        if match := _V4.fullmatch(text):
            return IPv4Address(match[1])
        if match := _V6.fullmatch(text) or _BARE_V6.fullmatch(text):
            address = IPv6Address(match[1])
            return address.ipv4_mapped or address
    except ValueError:
        pass
    return None


def _network(text: str) -> _Network:
    """Return a network of proxies. One of IPv4 addresses that are mapped into IPv6 is the IPv4 network."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(f"the trusted proxy {text!r} is not an address or a network") from None
    if not isinstance(network, IPv6Network):
        return network
    if network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    if IPv6Address(text.partition("/")[0].partition("%")[0]).ipv4_mapped is not None:
        # Otherwise ::ffff:10.0.0.0/8 would be ::/8, which holds far more than anybody meant.
        raise ConfigurationError(f"the trusted proxy {text!r} needs a prefix of at least 96: write the IPv4 network")
    return network
