"""Who may count, as the operator's configuration says it."""

from __future__ import annotations

import pytest

from modelrollout.api.selectors import fit, parse, promql
from modelrollout.config import GatewayMetrics


def test_matchers_are_read_and_stand_in_a_query_as_they_were_meant() -> None:
    text = ' namespace = "gateways" , container=~"traefik|edge-\\\\d+" '
    assert promql(text) == 'namespace="gateways",container=~"traefik|edge-\\\\d+"'
    assert promql("") == promql("  ") == ""


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        ({"namespace": "gateways", "container": "edge-7"}, True),
        ({"namespace": "gateways", "container": "edge-7b"}, False),
        ({"namespace": "gateways"}, False),
        ({"container": "traefik"}, False),
    ],
)
def test_a_target_fits_as_prometheus_would_say(labels: dict[str, str], fits: bool) -> None:
    assert fit(parse('namespace="gateways",container=~"traefik|edge-\\\\d+"'), labels) is fits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("traefik", "no label matcher"),
        ('{job="traefik"}', "no label matcher"),
        ('namespace="gateways" job="x"', "no label matcher"),
        ('namespace="gateways",', "no label matcher"),
        ('job="a"} or up{job="b"', "no label matcher"),
        ("namespace='gateways'", "no label matcher"),
        ('namespace!="tenant"', "says who may not count"),
        ('namespace!~"tenant.*"', "says who may not count"),
        ('service="edge"', "whoever is scraped may write it"),
        ('exported_namespace="gateways"', "whoever is scraped may write it"),
        ('namespace=~"["', "cannot be read"),
        ('namespace="\\x"', "cannot be read"),
        ('namespace=~".*"', "fits whoever has no such label"),
        ('namespace=""', "fits whoever has no such label"),
    ],
)
def test_what_says_nothing_is_refused_with_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        GatewayMetrics(selector=text)
    assert "for example namespace=" in str(refused.value) or "separated by commas" in str(refused.value)
