"""Runs that differ in some settings: a table of them read from TOML, carried out, evaluated, and printed side by side."""
