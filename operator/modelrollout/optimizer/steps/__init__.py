"""The optimization steps. ``registry`` lists them; docs/contributing/adding-an-optimizer-step.md
says how to add one.
"""
