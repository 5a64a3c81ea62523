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
        ("traefik", "not a label matcher"),
        ('{job="traefik"}', "not a label matcher"),
        ('namespace="gateways" job="x"', "not a label matcher"),
        ('namespace="gateways",', "not a label matcher"),
        ('job="a"} or up{job="b"', "not a label matcher"),
        ("namespace='gateways'", "not a label matcher"),
        ('namespace!="tenant"', "excludes; say with = or =~ who may count"),
        ('namespace!~"tenant.*"', "excludes; say with = or =~ who may count"),
        ('service="edge"', "can be written by any scraped process"),
        ('exported_namespace="gateways"', "can be written by any scraped process"),
        ('namespace=~"["', "cannot be read"),
        ('namespace="\\x"', "cannot be read"),
        ('namespace=~".*"', "also fits series without that label"),
        ('namespace=""', "also fits series without that label"),
    ],
)
def test_what_says_nothing_is_refused_with_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        GatewayMetrics(selector=text)
    assert "for example namespace=" in str(refused.value) or "separated by commas" in str(refused.value)
