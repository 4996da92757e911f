# SPDX-License-Identifier: Apache-2.0
"""Everything that comes from outside: read, checked and refused here; never executed.

>>> base = describe_base(model)
>>> for found in check(Upload.of(paths), base):
...     show(found.name, found.state, found.sentence)
>>> model = attach(model, found.adapter, "visitor-1")
"""

from .adapter import Adapter
from .attach import attach, detach, try_out
from .base import BaseShapes, base_from_config, describe_base
from .errors import AdapterError
from .files import Folder, Source, Upload, UploadedFile
from .hub import HubRepository
from .limits import OPERATOR, Limits
from .report import Check, check, clean_label, open_adapter
from .sources import named_source
from .store import AdapterStore, Held, StoreLimits


__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterStore",
    "BaseShapes",
    "Check",
    "Folder",
    "Held",
    "HubRepository",
    "Limits",
    "OPERATOR",
    "Source",
    "StoreLimits",
    "Upload",
    "UploadedFile",
    "attach",
    "base_from_config",
    "check",
    "clean_label",
    "describe_base",
    "detach",
    "named_source",
    "open_adapter",
    "try_out",
]
