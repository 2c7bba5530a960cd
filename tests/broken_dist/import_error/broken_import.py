"""Needs a package that is not there."""

from __future__ import annotations

import no_such_package_anywhere  # type: ignore[import-not-found]  # noqa: F401
