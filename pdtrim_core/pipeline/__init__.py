"""A run: its steps and what they share."""
