"""`pdtrim-core schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json

from pdtrim_core import recipe_schema
from pdtrim_core.plugins import load_plugins


def schema() -> None:
    """Print the JSON schema of recipes for the components that are installed."""
    print(json.dumps(recipe_schema.schema(load_plugins()), indent=1))
