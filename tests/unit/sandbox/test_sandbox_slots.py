"""Two sandboxes on one machine never share an address."""

from __future__ import annotations

import ipaddress
import itertools
from pathlib import Path

import pytest

from sandbox import slots
from sandbox.slots import NODES, SLOTS, Slot, choose, living


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_no_two_slots_overlap() -> None:
    every = [ipaddress.ip_network(n) for number in range(SLOTS) for n in Slot(number).networks]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(every, 2))


def test_every_address_lies_in_its_network() -> None:
    slot = Slot(7)
    link, pods, services = map(ipaddress.ip_network, (slot.link, slot.pods, slot.services))
    assert all(ipaddress.ip_address(a) in link for a in (slot.host, slot.infra, *map(slot.node, NODES)))
    assert len({slot.host, slot.infra, *map(slot.node, NODES)}) == 2 + len(NODES)
    assert all(ipaddress.ip_network(slot.node_pods(n)).subnet_of(pods) for n in NODES)  # type: ignore[arg-type]
    assert ipaddress.ip_address(slot.api_service) in services
    assert ipaddress.ip_address(slot.dns_service) in services


def test_an_interface_name_fits() -> None:
    assert all(len(Slot(n).veth) <= 15 for n in range(SLOTS))


def test_the_first_free_slot_is_taken() -> None:
    assert choose([], []).number == 0
    assert choose([0, 1, 3], []).number == 2


@pytest.mark.parametrize("route", ["10.100.0.0/16", "10.150.3.0/24", "10.200.0.0/30"])
def test_a_slot_that_a_route_of_this_machine_overlaps_is_left_out(route: str) -> None:
    assert choose([], [route]).number == 1


def test_running_out_says_so() -> None:
    with pytest.raises(RuntimeError, match="no free address slot"):
        choose([], ["10.0.0.0/8"])


def test_a_sandbox_keeps_its_slot_and_gives_it_back(homes: Path) -> None:
    assert slots.acquire("one", []).number == 0
    assert slots.acquire("two", []).number == 1
    assert slots.acquire("one", []).number == 0
    assert slots.slot_of("two") == Slot(1)
    slots.release("one")
    assert slots.slot_of("one") is None
    assert slots.acquire("three", []).number == 0


def test_a_slot_whose_state_was_removed_by_hand_is_free_again(homes: Path) -> None:
    slots.acquire("gone", [])
    (homes / "state" / "modelrollout-sandbox" / "gone").rmdir()
    assert slots.acquire("new", []).number == 0
    assert slots.slot_of("gone") is None


def test_the_last_to_leave_removes_the_table(homes: Path) -> None:
    slots.acquire("one", [])
    slots.release("one")
    assert not (homes / "state" / "modelrollout-sandbox" / "slots.json").exists()


def test_living_are_those_with_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert living({"a": 0, "b": 1}, tmp_path) == {"a": 0}
