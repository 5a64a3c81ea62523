"""No name leads to an address at which the node or its cloud answers, however it is written."""

from __future__ import annotations

import ipaddress

import pytest

from modelrollout.api.addresses import near

# By what their vendors document.
METADATA = {
    "AWS, Google Cloud, Azure, Oracle Cloud, OpenStack and others": "169.254.169.254",
    "AWS, task of ECS": "169.254.170.2",
    "AWS, Pod Identity of EKS": "169.254.170.23",
    "Tencent Cloud": "169.254.0.23",
    "Scaleway": "169.254.42.42",
    "Alibaba Cloud": "100.100.100.200",
    "Azure, WireServer": "168.63.129.16",
    "Oracle Cloud Classic": "192.0.0.192",
    "AWS, IPv6": "fd00:ec2::254",
    "AWS, Pod Identity of EKS, IPv6": "fd00:ec2::23",
    "AWS, DNS, IPv6": "fd00:ec2::253",
    "Google Cloud, IPv6": "fd20:ce::254",
    "Alibaba Cloud, IPv6": "fd00:100::100:200",
    "Oracle Cloud, IPv6": "fd00:c1::a9fe:a9fe",
    "OpenStack, IPv6": "fe80::a9fe:a9fe",
    "Scaleway, IPv6": "fd00:42::42",
    "Akamai, IPv6": "fd00:a9fe:a9fe::1",
}
OF_THIS_MACHINE = ("127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.1.1", "::1", "::", "fe80::1", "fe80::1%eth0")
OF_NO_HOST = ("224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1", "100::1", "::a9fe:a9fe")
OF_OTHERS = (
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.201",
    "8.8.8.8",
    "168.63.129.17",
    "192.0.0.193",
    "fd00::1",
    "fd00:42::43",
    "fd20:ce::253",
    "2001:4860:4860::8888",
)


@pytest.mark.parametrize("service", METADATA)
def test_an_address_of_a_metadata_service_is_near(service: str) -> None:
    assert near(METADATA[service])


@pytest.mark.parametrize("address", OF_THIS_MACHINE + OF_NO_HOST)
def test_an_address_that_no_other_host_has_is_near(address: str) -> None:
    assert near(address)


@pytest.mark.parametrize("address", OF_OTHERS)
def test_any_other_is_for_the_configuration_to_say(address: str) -> None:
    assert not near(address)


def forms(address: str) -> dict[str, str]:
    """IPv6 addresses by which a translator or a tunnel reaches the IPv4 address."""
    number = int(ipaddress.IPv4Address(address))
    high, low = number >> 16, number & 0xFFFF
    return {
        "mapped": f"::ffff:{address}",
        "NAT64": f"64:ff9b::{high:x}:{low:x}",
        "6to4": f"2002:{high:x}:{low:x}::1",
        "Teredo": f"2001:0:808:808:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
        "Teredo's server": f"2001:0:{high:x}:{low:x}:0:0:{0x808 ^ 0xFFFF:x}:{0x808 ^ 0xFFFF:x}",
    }


@pytest.mark.parametrize("form", forms("8.8.8.8"))
def test_an_address_within_another_counts_as_itself(form: str) -> None:
    for address in (*METADATA.values(), *OF_THIS_MACHINE, *OF_NO_HOST, *OF_OTHERS):
        if ":" not in address:
            assert near(forms(address)[form]) is near(address), address
