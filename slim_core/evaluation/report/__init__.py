# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML page that needs nothing else: no network, no script."""

from .answers import answers_page
from .page import report_page


__all__ = ["answers_page", "report_page"]
