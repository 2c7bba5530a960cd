"""`pdtrim-core schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json

from pdtrim_core.cli.terminal import say_data
from pdtrim_core.host.host import load_plugins
from pdtrim_core.recipe import json_schema as recipe_schema


def schema() -> None:
    """Print the JSON schema of recipes for the components that are installed."""
    say_data(json.dumps(recipe_schema.schema(load_plugins()), indent=1))
