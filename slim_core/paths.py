# SPDX-License-Identifier: Apache-2.0
"""Paths of files that are not code: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path


PACKAGE = Path(__file__).resolve().parent
# A wheel brings them along. Beside an installed package lie other packages, so that is looked at last.
ASSETS = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else PACKAGE.parent / "assets"
DEMO = ASSETS / "demo"
