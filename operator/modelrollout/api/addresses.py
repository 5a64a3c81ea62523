"""Addresses at which the node or its cloud answers, and nothing that a platform serves models from:
no name of a store may lead there, and no wide range of a NetworkPolicy means them.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LINK = (ipaddress.IPv4Network("169.254.0.0/16"), ipaddress.IPv6Network("fe80::/10"))
# Most metadata services, and those that give pods an identity, are at addresses of the link. These
# are not.
METADATA = (
    ipaddress.IPv4Network("100.100.100.200/32"),  # Alibaba Cloud
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure, its WireServer
    ipaddress.IPv4Network("192.0.0.192/32"),  # Oracle Cloud Classic
    ipaddress.IPv6Network("fd00:ec2::/32"),  # AWS: metadata, EKS Pod Identity (::23), DNS, time
    ipaddress.IPv6Network("fd20:ce::254/128"),  # Google Cloud
    ipaddress.IPv6Network("fd00:100::100:200/128"),  # Alibaba Cloud
    ipaddress.IPv6Network("fd00:c1::a9fe:a9fe/128"),  # Oracle Cloud
    ipaddress.IPv6Network("fd00:42::42/128"),  # Scaleway
    ipaddress.IPv6Network("fd00:a9fe:a9fe::1/128"),  # Akamai (Linode)
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def near(address: str) -> bool:
    """Whether the address is this machine's, of the link, of a metadata service or unassigned: no
    other host should have it.
    """
    return any(map(_is_near, _ends(ipaddress.ip_address(address.partition("%")[0]))))


def _ends(ip: Address) -> tuple[Address, ...]:
    """Where packets to the address arrive: translators and tunnels carry them to IPv4 addresses
    that it contains.
    """
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    if ip in _NAT64:
        return (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF),)
    contained = ip.ipv4_mapped or ip.sixtofour
    return (contained,) if contained else ip.teredo or (ip,)


def _is_near(ip: Address) -> bool:
    return (
        ip.is_link_local
        or ip.is_loopback
        or ip.is_unspecified
        or ip.is_multicast
        or ip.is_reserved
        or any(ip in network for network in METADATA)
    )
