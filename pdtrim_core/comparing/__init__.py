"""Runs side by side: which results belong together, the table, and its texts."""
