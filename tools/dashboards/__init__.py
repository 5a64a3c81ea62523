"""Grafana dashboards, generated with the Grafana Foundation SDK."""
