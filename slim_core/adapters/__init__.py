# SPDX-License-Identifier: Apache-2.0
"""Untrusted adapters: read, checked, and refused if anything is wrong; never executed.

>>> base = describe_base(model)
>>> for step in check(Upload.of(paths), base):
...     show(step.name, step.state, step.sentence)
>>> model = attach(model, step.adapter, "visitor-1")
"""

from ..base.shapes import BaseShapes, base_from_config, describe_base
from ..outside.errors import AdapterError
from ..outside.files import Folder, Source, Upload, UploadedFile
from ..outside.hub import HubRepository
from ..outside.limits import OPERATOR, Limits
from ..outside.sources import named_source
from .adapter import Adapter
from .attach import attach, detach, load_whole, try_out
from .fit import absent_names
from .report import Check, check, check_form, clean_label, open_adapter
from .row_parts import part_tensors
from .store import AdapterStore, NoRoomError, StoredAdapter, StoreLimits


__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterStore",
    "BaseShapes",
    "Check",
    "Folder",
    "StoredAdapter",
    "HubRepository",
    "Limits",
    "NoRoomError",
    "OPERATOR",
    "Source",
    "StoreLimits",
    "Upload",
    "UploadedFile",
    "absent_names",
    "attach",
    "base_from_config",
    "check",
    "check_form",
    "clean_label",
    "describe_base",
    "detach",
    "load_whole",
    "named_source",
    "open_adapter",
    "part_tensors",
    "try_out",
]
