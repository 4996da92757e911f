# SPDX-License-Identifier: Apache-2.0
"""Answers of a base model and its adapters in one batch, the routing of each token, and drift.

Importing this package installs its kernel for rows of one token (`single_token`) in the SLIM layers of the process.
"""

from ..base.choice import BaseChoice
from ..base.errors import EngineError
from ..base.messages import Message
from ..method import AS_TRAINED, GateSetting, check_quantile
from . import single_token
from .engine import Engine
from .loading import load_engine, open_base
from .measure import Measure
from .stops import Stops
from .switching import BaseSwitch, Progress
from .types import (
    Drift,
    Likelihood,
    MemoryUse,
    ModelInfo,
    Passage,
    Reading,
    RoutingRecord,
    Row,
    RowStep,
    Sampling,
    Step,
    Variant,
    VariantDrift,
)
from .verdict import Verdict, verdict_of


__all__ = [
    "AS_TRAINED",
    "BaseChoice",
    "BaseSwitch",
    "Drift",
    "Engine",
    "EngineError",
    "GateSetting",
    "Likelihood",
    "Measure",
    "MemoryUse",
    "Message",
    "ModelInfo",
    "Passage",
    "Progress",
    "Reading",
    "Row",
    "RowStep",
    "RoutingRecord",
    "Sampling",
    "Step",
    "Stops",
    "Variant",
    "VariantDrift",
    "Verdict",
    "check_quantile",
    "load_engine",
    "open_base",
    "verdict_of",
]

single_token.install()
