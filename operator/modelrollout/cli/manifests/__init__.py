"""Manifests in files: read, checked, compared with a cluster and edited, as pipelines do."""
