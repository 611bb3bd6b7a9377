"""The client's address behind proxies. The package `forwarded` is the oracle wherever both say something."""

from ipaddress import IPv6Address

import forwarded
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custody.emit.address import CHAIN, HEADER_CHARACTERS, NO_ADDRESS, Client, Header, Peer, Proxies, forwarded_for
from custody.errors import ConfigurationError
from tests.helpers.growth import check_growth

TEN = ["10.0.0.0/8"]
PEER = "10.0.0.2"
XFF = b"x-forwarded-for"


def client(value: str, peer: str | None = PEER, hops: int | None = None, header: Header = "x-forwarded-for") -> Client:
    """Return the client of a request with one header, behind proxies of 10/8 or a number of them."""
    proxies = Proxies(() if hops else TEN, hops=hops, header=header)
    return proxies.client(Peer(peer), [(header.encode(), value.encode("latin-1"))])


@pytest.mark.parametrize(
    ("value", "ip", "source"),
    [
        ("203.0.113.9", "203.0.113.9", "xff"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9", "xff"),
        ("1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9", "xff"),
        ("<script>, 203.0.113.9", "203.0.113.9", "xff"),
        ("203.0.113.9:4711", "203.0.113.9", "xff"),
        ("2001:DB8::7", "2001:db8::7", "xff"),
        ("[2001:db8::7]:4711", "2001:db8::7", "xff"),
        ("fe80::1%eth0", "fe80::1", "xff"),
        ("[fe80::1%25eth0]:80", "fe80::1", "xff"),
        ("::ffff:203.0.113.9", "203.0.113.9", "xff"),
        ("203.0.113.9, ::ffff:10.0.0.9", "203.0.113.9", "xff"),
        ("203.0.113.9,,10.0.0.7,", "203.0.113.9", "xff"),
        ("10.0.0.9, 10.0.0.7", "10.0.0.9", "xff"),
        ("", PEER, "peer"),
        ("203.0.113.9, <script>", PEER, "unknown"),
        ("203.0.113.9, unknown", PEER, "unknown"),
        ("203.0.113.9, _hidden", PEER, "unknown"),
        ("256.0.0.1", PEER, "unknown"),
        ("1.2.3", PEER, "unknown"),
        ("203.0.113.9 10.0.0.7", PEER, "unknown"),
        ("\xb2.0.0.1", PEER, "unknown"),
    ],
)
def test_the_first_address_from_the_right_that_is_not_trusted_is_the_client(value: str, ip: str, source: str) -> None:
    """What stands left of it is the client's own text, and is not read; what is no address there is unknown."""
    assert client(value) == Client(ip, source)  # type: ignore[arg-type]


def test_only_a_trusted_peer_is_believed() -> None:
    """Whoever connects without a proxy writes any header, and stays who he is."""
    assert client("203.0.113.9", "198.51.100.1") == Client("198.51.100.1", "peer")
    assert Proxies().client(Peer("198.51.100.1"), [(XFF, b"203.0.113.9")]) == Client("198.51.100.1", "peer")
    assert client("203.0.113.9", "::ffff:10.0.0.2") == Client("203.0.113.9", "xff")
    assert client("203.0.113.9", "::ffff:198.51.100.1") == Client("198.51.100.1", "peer")


def test_one_header_is_read() -> None:
    """The header that the proxies do not write is the client's, and says nothing."""
    headers = [(XFF, b"1.1.1.1"), (b"forwarded", b"for=2.2.2.2")]
    assert Proxies(TEN).client(Peer(PEER), headers).ip == "1.1.1.1"
    assert Proxies(TEN, header="forwarded").client(Peer(PEER), headers).ip == "2.2.2.2"
    assert Proxies(TEN, header="forwarded").client(Peer(PEER), headers[:1]) == Client(PEER, "peer")


def test_lines_of_a_header_are_one_list() -> None:
    """A proxy that adds a line of its own is read as one that adds to the line."""
    assert Proxies(TEN).client(Peer(PEER), [(XFF, b"1.1.1.1"), (b"X-Forwarded-For", b"2.2.2.2")]).ip == "2.2.2.2"


@pytest.mark.parametrize(
    ("value", "ip"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('For="203.0.113.9:4711";Proto=https;by=10.0.0.1', "203.0.113.9"),
        ('for="[2001:db8::7]:_port"', "2001:db8::7"),
        ('for="\\2\\03.0.113.9"', "203.0.113.9"),
        ("for=1.1.1.1, for=203.0.113.9 , for=10.0.0.7", "203.0.113.9"),
        ('for=1.1.1.1;x=", for=203.0.113.9', "203.0.113.9"),
        ('for=1.1.1.1;x=", for="203.0.113.9"', "203.0.113.9"),
        ('for=1.1.1.1;x="\\", for=203.0.113.9', "203.0.113.9"),
        ('x", for=203.0.113.9', "203.0.113.9"),
        ("for=203.0.113.9;for=1.1.1.1", None),
        ("for=203.0.113.9;junk", None),
        ("proto=https", None),
        ("for=unknown", None),
        ("for=_SEVKISEK", None),
        ("for=", None),
        ('for="203.0.113.9', None),
    ],
)
def test_rfc_7239(value: str, ip: str | None) -> None:
    """Quotes and escapes are read, and none of a client's hides the element that the proxy wrote behind it."""
    assert client(value, header="forwarded") == (Client(ip, "forwarded") if ip else Client(PEER, "unknown"))


def test_a_unix_socket_needs_hops() -> None:
    """Its peer has no address. With hops the entry that the first proxy wrote is the client; else we refuse."""
    assert client("1.1.1.1, 203.0.113.9", None, hops=1) == Client("203.0.113.9", "xff")
    assert client("1.1.1.1, 203.0.113.9, 10.0.0.7", None, hops=2) == Client("203.0.113.9", "xff")
    assert client("203.0.113.9", None, hops=2) == Client(NO_ADDRESS, "unknown")
    assert client("junk", None, hops=1) == Client(NO_ADDRESS, "unknown")
    assert client("junk", "192.0.2.1", hops=1) == Client("192.0.2.1", "unknown")
    assert Proxies(TEN).client(Peer(None), [(XFF, b"203.0.113.9")]) == Client(NO_ADDRESS, "unknown")
    for peer in (None, "", "<script>"):
        with pytest.raises(ConfigurationError, match="set hops"):
            Proxies(TEN).require_peer(peer)
        Proxies(hops=1).require_peer(peer)
    Proxies().require_peer("203.0.113.9")


def test_which_peer_may_give_a_request_its_id() -> None:
    """A peer of the networks may; with hops, every peer, for only proxies reach us."""
    assert Proxies(TEN).trusts(Peer(PEER))
    assert not Proxies(TEN).trusts(Peer("203.0.113.9"))
    assert not Proxies(TEN).trusts(Peer(None))
    assert not Proxies().trusts(Peer("127.0.0.1"))
    assert Proxies(hops=1).trusts(Peer(None))


@pytest.mark.parametrize(
    ("client", "header", "replaced"),
    [
        (("203.0.113.9", 0), b"203.0.113.9", True),
        (("203.0.113.9", 0), b"", True),
        (("203.0.113.9", 4711), b"1.1.1.1, 203.0.113.9:4711", True),
        (("2001:db8::1", 4711), b"[2001:db8::1]:4711", True),
        (("203.0.113.9", 4711), b"203.0.113.9", False),
        (("203.0.113.9", 4711), b"203.0.113.9:4712", False),
    ],
)
def test_a_peer_that_the_server_took_from_a_header_is_told(
    client: tuple[str, int], header: bytes, replaced: bool
) -> None:
    """It is no proxy of ours, whatever its address, and the event says that the server gave it."""
    peer = Peer.of(client, [(XFF, header)])
    assert peer == Peer(client[0], replaced)
    if replaced:
        everybody = Proxies(["0.0.0.0/0", "::/0"])
        assert not everybody.trusts(peer)
        assert everybody.client(peer, [(XFF, b"1.1.1.1")]) == Client(client[0], "server")
    assert Peer.of(None, []) == Peer.of([], []) == Peer(None)


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_a_long_header_is_unknown(header: Header) -> None:
    """A header beyond its limit is not read, nor are more entries of trusted addresses than the limit."""
    entry = "for=1.1.1.1" if header == "forwarded" else "1.1.1.1"
    trusted = "for=10.1.1.1" if header == "forwarded" else "10.1.1.1"
    spaces = " " * (HEADER_CHARACTERS - len(entry))
    assert client(spaces + entry, header=header).ip == "1.1.1.1"
    assert client(spaces + " " + entry, header=header) == Client(PEER, "unknown")
    assert client(",".join([entry] + [trusted] * (CHAIN - 1)), header=header).ip == "1.1.1.1"
    assert client(",".join([entry] + [trusted] * CHAIN), header=header) == Client(PEER, "unknown")
    assert client(",".join([entry] + [trusted] * CHAIN * 9), header=header) == Client(PEER, "unknown")
    assert client(",".join([trusted] * CHAIN), header=header).ip == "10.1.1.1"


@pytest.mark.parametrize(
    ("trusted", "hops", "message"),
    [
        (["10.0.0.0/33"], None, "'10.0.0.0/33' is not an address or a network"),
        (["proxy"], None, "'proxy' is not an address"),
        (["::ffff:10.0.0.0/8"], None, "write the IPv4 network"),
        ("10.0.0.0/8", None, "not one text"),
        (["10.0.0.1"], 1, "give one of them"),
        ([], 0, "may be 1 to"),
        ([], CHAIN, "may be 1 to"),
    ],
)
def test_settings_that_cannot_be_meant(trusted: list[str], hops: int | None, message: str) -> None:
    """A wrong setting is refused when it is made, not at a request."""
    with pytest.raises(ConfigurationError, match=message):
        Proxies(trusted, hops=hops)
    with pytest.raises(ConfigurationError, match="header of proxies"):
        Proxies(header="x-real-ip")  # type: ignore[arg-type]


def test_a_network_of_mapped_addresses_is_the_ipv4_network() -> None:
    """Whichever way an operator writes it, the same proxies are trusted."""
    assert Proxies(["::ffff:10.0.0.0/104"]).client(Peer(PEER), [(XFF, b"1.1.1.1")]).ip == "1.1.1.1"


_NODES = st.sampled_from(
    [
        "10.0.0.7",
        "10.9.9.9",
        "203.0.113.9",
        "[2001:db8::7]:80",
        "2001:db8::9",
        "::ffff:10.0.0.1",
        "unknown",
        "_h",
        "x y",
    ]
)
_NOISE = st.text(alphabet='fo=r";,\\ \t[]1.:x_', max_size=12)
_FORWARDED = st.lists(
    st.one_of(_NOISE, _NODES.map("for={}".format), _NODES.map('for="{}"'.format), _NODES.map("for={};by=x".format)),
    max_size=6,
).map(",".join)


def _oracle(answer: forwarded.Client | None) -> str | None:
    if answer is None or answer.node.ip is None:
        return None
    ip = answer.node.ip
    return str(ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else str(ip)


@given(_FORWARDED, st.sampled_from(["10.0.0.2", "203.0.113.1"]))
@example('for=1.1.1.1;x=", for="[2001:db8::7]:80"', PEER)
@example('a="\\', PEER)
def test_forwarded_as_its_oracle(header: str, peer: str) -> None:
    """The client behind trusted networks is the one that `forwarded` finds; where it finds none, it is unknown."""
    expected = _oracle(forwarded.client_from_forwarded(header, peer, trusted=TEN))
    ours = Proxies(TEN, header="forwarded").client(Peer(peer), [(b"forwarded", header.encode())])
    assert (None if ours.source == "unknown" else ours.ip) == expected
    expected = _oracle(forwarded.client_from_forwarded(header, peer, hops=2))
    ours = Proxies(hops=2, header="forwarded").client(Peer(peer), [(b"forwarded", header.encode())])
    assert (None if ours.source == "unknown" else ours.ip) == expected


@given(st.lists(st.one_of(_NOISE, _NODES), max_size=6).map(",".join), st.sampled_from(["10.0.0.2", "203.0.113.1"]))
def test_x_forwarded_for_as_its_oracle(header: str, peer: str) -> None:
    """The same for X-Forwarded-For."""
    expected = _oracle(forwarded.client_from_x_forwarded(header, peer, trusted=TEN))
    ours = Proxies(TEN).client(Peer(peer), [(XFF, header.encode())])
    assert (None if ours.source == "unknown" else ours.ip) == expected
    expected = _oracle(forwarded.client_from_x_forwarded(header, peer, hops=2))
    ours = Proxies(hops=2).client(Peer(peer), [(XFF, header.encode())])
    assert (None if ours.source == "unknown" else ours.ip) == expected


@given(st.binary(max_size=60), st.one_of(st.none(), st.text(max_size=20)), st.sampled_from(["forwarded", XFF.decode()]))
def test_no_bytes_make_it_fail(value: bytes, peer: str | None, header: Header) -> None:
    """Whatever is sent, there is an address that an event may have."""
    for proxies in (Proxies(["0.0.0.0/0", "::/0"], header=header), Proxies(hops=1, header=header)):
        assert "%" not in proxies.client(Peer(peer), [(header.encode(), value)]).ip


@pytest.mark.parametrize("item", ['a="', 'a="x,', 'a="\\",', ";", ",", "for=10.0.0.1,", '"', "=", "a=\\", 'a=""x', " "])
def test_hostile_headers_take_time_in_proportion(item: str) -> None:
    """Quotes without end, escapes, and many elements cost no more than their length."""
    check_growth(lambda data: forwarded_for(data.decode()), lambda size: item.encode() * (size // len(item)))
