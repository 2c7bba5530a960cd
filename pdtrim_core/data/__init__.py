"""Samples, items, scores and readings. No torch."""
