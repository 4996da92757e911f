# SPDX-License-Identifier: Apache-2.0
"""Which types of causal language models are supported: those for which batching does not change an answer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..outside.errors import first_line
from .errors import EngineError


log = logging.getLogger(__name__)
# What a forward must take, each by one of these names: transformers 5.24 renames the cache.
NEEDED = (("attention_mask",), ("past_key_values", "cache"))


def check_family(model: PreTrainedModel, label: str) -> None:
    """Refuse a type of model that cannot answer as rows of one batch.

    Args:
        model: it may be on the meta device.
        label: its name for people.

    Raises:
        EngineError: with the reason.
    """
    family = model.config.model_type
    text = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise EngineError(
            f"{label} ({family}) has an encoder; only decoder-only (causal) language models are supported."
        )
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text, "is_decoder", True):
        raise EngineError(f"{label} ({family}) reads in both directions, so it cannot generate text.")
    layers = {type(layer) for layer in DynamicCache(config=text).layers}
    if model._is_stateful or not layers <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise EngineError(
            f"{label} ({family}) keeps a recurrent state, which padding would change, so batching would change its "
            "answers; choose a model that attends to everything it has read, such as Llama, Qwen3 or Gemma."
        )
    parameters = inspect.signature(type(model).forward).parameters
    missing = [names[0] for names in NEEDED if not any(name in parameters for name in names)]
    if missing:
        raise EngineError(
            f"{label} ({family}) takes no {missing[0]} in transformers, which is needed to answer texts of different "
            "lengths in one batch; choose another type of model."
        )


@contextmanager
def measured(label: str, config: PreTrainedConfig) -> Iterator[None]:
    """Context manager for building and measuring a type of model that may never have been tried.

    Args:
        label: its name for people.
        config: its config.

    Raises:
        EngineError: in place of whatever goes wrong.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # each model family in transformers has its own fields
        log.info("a base could not be measured", exc_info=True)
        raise EngineError(
            f"{label} ({config.model_type}) is a type of model whose size cannot be determined ({first_line(error)}); "
            "choose another type of model, such as Llama, Qwen3 or Gemma."
        ) from None
