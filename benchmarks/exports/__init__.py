"""Measurements of exported models and of exporting."""
