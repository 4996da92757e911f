# SPDX-License-Identifier: Apache-2.0
"""Adapters on the base model: attaching them, taking them off, and what they are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..method import SlimLayer, fold_masks, load_lora
from .errors import EngineError, first_line, is_out_of_memory, out_of_memory_sentence
from .types import Kind, Variant


FILES = ("adapter_config.json", "adapter_model.safetensors")
KINDS: dict[str, Kind] = {"LORA": "lora", "SLIM": "slim"}


def peft_name(variant: str) -> str:
    """An adapter's name in PEFT. PEFT allows neither dots nor a part of a tuner's prefix, such as "slim"."""
    return "variant-" + variant.replace("~", "~0").replace(".", "~1")


def adapter_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder with an adapter's two files: as it is, or fetched from the Hub.

    Raises:
        EngineError: if there is no such folder or repository, or one of the files is missing.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(FILES)))
        except Exception as error:  # hub and network errors of many kinds
            raise EngineError(
                f"There is no adapter {source} ({first_line(error)}): name a folder or a Hub id that holds "
                f"{FILES[0]} and {FILES[1]}."
            ) from None
    for name in FILES:
        if not (folder / name).is_file():
            raise EngineError(f"{source} holds no {name}: name the folder of a saved LoRA or SLIM adapter.")
    return folder


def adapter_kind(folder: Path) -> Kind:
    """What kind of adapter a folder holds.

    Raises:
        EngineError: if it is neither a LoRA nor SLIM.
    """
    try:
        found = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))["peft_type"]
        return KINDS[found]
    except (ValueError, TypeError):
        raise EngineError(f"{folder / FILES[0]} is no adapter configuration: save the adapter again.") from None
    except KeyError as error:
        raise EngineError(f"The adapter in {folder} is of the kind {error}: only LORA and SLIM can answer.") from None


class Adapters:
    """The adapters around one base model.

    Args:
        model: the base model, in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: PreTrainedModel | PeftModel = model
        self._base = model

    def attach(self, folder: Path, kind: Kind, name: str) -> None:
        """Attach a saved adapter as a variant.

        Raises:
            EngineError: if it does not fit; the base and the other adapters are as before.
        """
        try:
            if kind == "lora":
                self._model = load_lora(self._model, folder, peft_name(name))
            elif isinstance(self._model, PeftModel):
                self._load_slim(folder, peft_name(name))
            else:
                self._model = PeftModel.from_pretrained(
                    self._base, str(folder), adapter_name=peft_name(name), torch_device=str(self._base.device)
                )
        except Exception as error:  # what a file can be wrong in is without number
            if is_out_of_memory(error):
                raise EngineError(out_of_memory_sentence(self._base.device, 1)) from None
            raise EngineError(f"The adapter in {folder} cannot be attached: {first_line(error)}.") from error
        else:
            # Here it only answers.
            fold_masks(self._base, peft_name(name))
        finally:
            self._model.requires_grad_(False).eval()

    def _load_slim(self, folder: Path, name: str) -> None:
        try:
            self._model.load_adapter(str(folder), adapter_name=name, torch_device=str(self._base.device))
        except Exception:
            if name in self._model.peft_config:
                self._model.delete_adapter(name)
            raise

    def detach(self, name: str) -> None:
        """Take an adapter off; after the last one the base is as it was loaded."""
        if len(self._model.peft_config) == 1:
            self._model.unload()
            self._model = self._base
        else:
            self._model.delete_adapter(peft_name(name))

    def size(self, name: str) -> tuple[int, int]:
        """Numbers and bytes of one adapter's tensors."""
        tensors = list(_tensors(self._base, peft_name(name)))
        return sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)

    def describe(self, name: str, kind: Kind) -> str:
        """A few words on its sizes."""
        config = self._model.peft_config[peft_name(name)]
        if kind == "lora":
            return f"rank {config.r}"
        return f"rank {config.r}, {config.num_experts} + {config.num_identity} experts, top-{config.top_k}"

    def variant(self, name: str, kind: Kind, label: str) -> Variant:
        parameters, size = self.size(name)
        return Variant(name, kind, label, parameters, size, self.describe(name, kind))


def _tensors(model: nn.Module, name: str):
    for module in model.modules():
        if isinstance(module, (SlimLayer, AuxiliaryTrainingWrapper)):
            for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
                # Containers are keyed by the adapter's name; the base's own modules are not.
                if name in path.split(".") and not path.startswith(("base_layer.", "original_module.")):
                    yield tensor


def base_size(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers and bytes of a base model that carries no adapter yet; of 4-bit weights the unpacked numbers."""
    return model.num_parameters(), model.get_memory_footprint()


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Free and total bytes of a device; None where it does not say."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    if device.type == "cpu":
        return _cpu_memory()
    return None, None


def _cpu_memory() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    free, total = kilobytes.get("MemAvailable"), kilobytes.get("MemTotal")
    return None if free is None else free * 1024, None if total is None else total * 1024
