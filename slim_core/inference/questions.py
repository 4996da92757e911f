# SPDX-License-Identifier: Apache-2.0
"""Checks and tokenises what callers ask for. An error is one sentence, raised before the model sees anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import PreTrainedModel

from ..base.errors import EngineError
from ..base.messages import Message, answer_begun
from ..base.prompts import Prompts
from ..method import GateSetting, check_quantile
from .detokenise import AnswerText, decoder_of
from .draft import Draft
from .drift import AnswerReading
from .types import Passage, Reading, Row, Sampling, TokenLogProb, Variant
from .variants import check_variants, peft_name


class Questions:
    """Checks and tokenises what callers ask for.

    Args:
        model: the base model.
        prompts: renders and tokenises conversations.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts) -> None:
        self._prompts = prompts
        self._decode = decoder_of(prompts.tokenizer)
        self._known = cast("int", model.get_input_embeddings().num_embeddings)

    def drafts(
        self, rows: Sequence[Row], sampling: Sampling, variants: Sequence[Variant], context: int
    ) -> list[Draft]:
        """A draft for each row; one with an error is done already.

        Args:
            rows: their variants are not checked here.
            sampling: how their tokens are chosen.
            variants: of the engine.
            context: the model's maximum number of tokens, prompt and answer together.
        """
        by_name = {variant.name: variant for variant in variants}
        latest: tuple[Any, list[int]] | None = None

        def encode(prompt: Any) -> list[int]:
            # Rows that are compared mostly have the same conversation.
            nonlocal latest
            if latest is None or latest[0] != prompt:
                latest = prompt, self.encode(prompt)
            return [*latest[1]]

        return [self._draft(i, row, sampling, by_name.get(row.variant), context, encode) for i, row in enumerate(rows)]

    def encode(self, prompt: Sequence[Message] | str | Sequence[int]) -> list[int]:
        """The token ids of a conversation up to where the answer begins, or of plain text; or these ids, checked.

        Raises:
            EngineError: if there is nothing to answer, the chat template refuses it, or the model has no such token.
        """
        if isinstance(prompt, str):
            ids = self._prompts.encode_plain(prompt)
        elif prompt and isinstance(prompt[0], int):
            ids = list(cast("Sequence[int]", prompt))
            for token in ids:
                if not 0 <= token < self._known:
                    raise EngineError(f"The model has no token {token}: its tokens are 0 to {self._known - 1}.")
        else:
            ids = self._prompts.encode(cast("Sequence[Message]", prompt))
        self._check_known(ids)
        return ids

    def _draft(
        self,
        index: int,
        row: Row,
        sampling: Sampling,
        variant: Variant | None,
        context: int,
        encode: Callable[[Any], list[int]],
    ) -> Draft:
        ends_with = None if variant is None else variant.ends_with
        stop = (*sampling.stop, *([] if ends_with is None else [ends_with]))
        answer = Draft(index, peft_name(row.variant), [], 0, AnswerText(self._decode, stop), row.routing, row.gate)
        answer.likeliest, answer.scores_prompt = row.log_probs, row.prompt_log_probs
        try:
            if variant is not None:
                check_gate(row.gate, variant)
            answer.prompt = encode(row.messages if row.text is None else row.text)
            if row.prompt_log_probs:
                answer.prompt_log_probs.append(TokenLogProb(answer.prompt[0], None, ()))
            if row.text is not None:
                answer.text = AnswerText(self._decode, stop, answer.prompt)
            elif answer_begun(row.messages):
                spaced = row.messages[-1].content.endswith(" ")
                answer.text = AnswerText(self._decode, stop, answer.prompt, spaced)
            answer.limit = min(sampling.max_new_tokens, _room(len(answer.prompt), context))
        except EngineError as error:
            answer.end("error", str(error))
        return answer

    def reading(
        self, reading: Reading, answer_ids: Sequence[int], context: int, stopped: Callable[[], bool]
    ) -> AnswerReading:
        """An answer that variants are to read, tokenised and checked.

        Raises:
            EngineError: if the answer is empty, too long or not the model's own.
        """
        answer = list(answer_ids)
        if not answer:
            raise EngineError("The base's answer is empty, so there is nothing to read.")
        for token in answer:
            if not 0 <= token < self._known:
                raise EngineError(f"The model has no token {token}, so the model did not write this answer.")
        prompt = self._prompts.encode(reading.messages)
        _room(len(prompt) + len(answer) - 1, context)
        return AnswerReading(prompt, answer, reading.variants, reading.gates, stopped)

    def passage(self, passage: Passage, context: int) -> tuple[Sequence[int], Sequence[int]]:
        """Token ids of what comes before some words, and of the words.

        Raises:
            EngineError: if there are no words, or too many.
        """
        before, words = self._prompts.encode_passage(passage.before, passage.words)
        self._check_known([*before, *words])
        _room(len(before) + len(words) - 1, context)
        return before, words

    def _check_known(self, tokens: Sequence[int]) -> None:
        """Check token ids: a tokenizer may have more tokens than its model, and on a GPU such an id would crash the
        process.
        """
        if max(tokens, default=0) >= self._known:
            raise EngineError(
                f"The chat template writes token {max(tokens)}, but the model knows {self._known}: use the tokenizer "
                "that belongs to this model."
            )


def check_gate(gate: GateSetting, variant: Variant) -> None:
    """Raises EngineError if a variant does not store the quantile that is asked for."""
    if variant.measure is None:
        return  # it has no gate
    try:
        check_quantile(gate.quantile, variant.quantiles, variant.name)
    except ValueError as error:
        raise EngineError(str(error)) from None


def check_gates(names: Sequence[str], gates: Sequence[GateSetting], variants: Sequence[Variant]) -> None:
    """Raises EngineError unless there is a possible gate setting for each of the names, or none at all."""
    if gates and len(gates) != len(names):
        raise EngineError(f"There are {len(names)} readers but {len(gates)} gate settings.")
    by_name = {variant.name: variant for variant in variants}
    for name, gate in zip(names, gates, strict=False):
        check_gate(gate, by_name[name])


def end_unknown(rows: Sequence[Row], drafts: Sequence[Draft], known: Callable[[], Sequence[Variant]]) -> None:
    """End the drafts of rows whose variants do not exist (any more)."""
    for row, draft in zip(rows, drafts, strict=True):
        try:
            check_variants([row.variant], known())
        except EngineError as error:
            draft.end("error", str(error))


def _room(tokens: int, context: int) -> int:
    """How many tokens may follow a prompt of `tokens` tokens."""
    room = context - tokens
    if room < 1:
        raise EngineError(
            f"The conversation has {tokens} tokens, but the model reads and writes at most "
            f"{context}: shorten it, or start a new one."
        )
    return room
