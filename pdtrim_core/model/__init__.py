"""A transformers model seen as blocks."""
