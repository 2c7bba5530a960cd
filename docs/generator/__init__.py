"""What `docs/generate.py` writes, a module for each sort of page."""
