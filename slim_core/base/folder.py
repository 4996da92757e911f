# SPDX-License-Identifier: Apache-2.0
"""A base model's files in a folder of this machine."""

from __future__ import annotations

import threading
from pathlib import Path

from transformers import PreTrainedConfig

from ..outside.errors import first_line
from .config import BaseConfigError, read_base_config
from .errors import EngineError
from .progress import OnProgress


CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path, label: str) -> PreTrainedConfig:
    """The config in a folder, without fields that ask for other code.

    Raises:
        EngineError: if there is none, or its weights are stored in a way that cannot be read.
    """
    if (folder / "adapter_config.json").is_file():
        raise EngineError(f"{label} is an adapter; --base must name the model that it belongs to.")
    try:
        config = read_base_config(folder)
    except BaseConfigError as error:
        raise EngineError(f"The base model {label} cannot be loaded: {error}.") from None
    except (AttributeError, IndexError, KeyError, TypeError):  # how transformers fails if a value has the wrong type
        cause = f"a value in its {CONFIG} is of another type than transformers expects"
        raise EngineError(f"The base model {label} cannot be loaded: {cause}.") from None
    except Exception as error:  # file and format errors of many kinds
        raise EngineError(
            f"The base model {label} cannot be loaded: {first_line(error).replace(str(folder), label)}; --base takes "
            "a folder or a Hub id such as Qwen/Qwen3-0.6B."
        ) from None
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise EngineError(
            f"{label} is stored in {method}, which is not supported; name the model that it was made from and load "
            "that in 4 bits."
        )
    return config


class FolderFiles:
    """Local files."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder, self._label, self.size = folder, label, 0

    def config(self, stop: threading.Event | None = None) -> PreTrainedConfig:
        return read_config(self._folder, self._label)

    def fetch(self, on_progress: OnProgress, stop: threading.Event) -> Path:
        if not any((self._folder / name).is_file() for name in (WEIGHTS, INDEX)):
            raise EngineError(f"{self._label} has no {WEIGHTS}; other weight files are not opened.")
        return self._folder
