# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one self-contained HTML page without network access or scripts."""

from .answers import answers_page
from .page import report_page


__all__ = ["answers_page", "report_page"]
