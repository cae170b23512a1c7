"""Measurements of exported models and of the exporters."""
