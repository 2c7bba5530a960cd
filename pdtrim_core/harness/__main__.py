"""The harness' own command line, with the model `pdtrim`: `python -m pdtrim_core.harness --model pdtrim ...`.

The harness finds models in a registry that third parties enter by being imported; it has no entry points.
"""

from __future__ import annotations

import sys

from pdtrim_core.errors import PdtrimError
from pdtrim_core.harness import check_installed


def main() -> None:
    """Register `pdtrim` and hand over to the harness."""
    try:
        check_installed()
        from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415 - the same

        import pdtrim_core.harness.model  # noqa: F401, PLC0415 - registers the class

        cli_evaluate()
    except PdtrimError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
