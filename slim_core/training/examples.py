# SPDX-License-Identifier: Apache-2.0
"""All examples of a run: read, encoded, checked against the limits, counted, split."""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from .data import expand, is_file, read_source, to_conversations, unused
from .encoding import IGNORED, EncodedExample, ExampleEncoder
from .errors import DataError, TrainingError
from .files import DataSource
from .names import named
from .settings import DEFAULT_LENGTH, DEFAULT_SPLIT, TrainSettings


@dataclass(frozen=True)
class Lengths:
    """Tokens of a list of examples.

    Attributes:
        examples: how many there are.
        tokens, answer_tokens: sums over all examples; the loss is on the answer tokens.
        median, most: of one example.
    """

    examples: int
    tokens: int
    answer_tokens: int
    median: int
    most: int

    @classmethod
    def of(cls, examples: Sequence[EncodedExample]) -> Lengths:
        lengths = [len(example.input_ids) for example in examples]
        answers = sum(label != IGNORED for example in examples for label in example.labels)
        return cls(len(lengths), sum(lengths), answers, round(statistics.median(lengths)), max(lengths))


@dataclass(frozen=True)
class Examples:
    """The data of a run, the same for every method.

    Attributes:
        train, validation: the examples; `validation` may be empty.
        sources: what was read, with counts and fingerprints, ready for training.json.
        too_long: examples that were left out at the user's wish.
        max_length: the limit that held, in tokens.
        first: the example that training begins with.
        duplicates: training examples that are the same as an earlier one.
        in_both: validation examples that are trained on too.
    """

    train: list[EncodedExample]
    validation: list[EncodedExample]
    sources: list[dict[str, object]]
    too_long: int
    max_length: int
    first: EncodedExample
    duplicates: int
    in_both: int


def length_limit(settings: TrainSettings, config: PreTrainedConfig) -> int:
    """Maximum number of tokens in an example.

    Raises:
        TrainingError: if more is asked for than the model can read.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if settings.max_length is None:
        return min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    if context is not None and settings.max_length > context:
        raise TrainingError(
            f"--max-length is {settings.max_length} tokens, but {settings.base} reads {context} at most; "
            "choose that or less."
        )
    return settings.max_length


def load_examples(settings: TrainSettings, encoder: ExampleEncoder, config: PreTrainedConfig) -> Examples:
    """Read and encode all data of a run.

    Raises:
        DataError: for the first thing that is wrong with the data.
    """
    limit = length_limit(settings, config)
    _check_data_sets(settings)
    reader = _Reader(settings, encoder, limit, config.get_text_config().vocab_size)
    everything = reader.read(settings.data, settings.split, "training")
    if settings.validation:
        validation = reader.read(settings.validation, settings.split, "validation")
        train = everything
    elif settings.validation_split:
        validation = reader.read(settings.data, settings.validation_split, "validation")
        train = everything
    else:
        train, validation = split(everything, settings.validation_share, settings.seed)
    trained = {_key(example) for example in train}
    shared = trained & {_key(example) for example in validation}
    reader.note_shared(shared)
    in_both = sum(_key(example) in shared for example in validation)
    return Examples(
        train,
        validation,
        reader.sources,
        reader.too_long,
        limit,
        first=first_trained(train, settings.seed),
        duplicates=len(train) - len(trained),
        in_both=in_both,
    )


def _check_data_sets(settings: TrainSettings) -> None:
    """Refuse settings of data sets where the data are files, of which they would change nothing."""
    names = [path for pattern in (*settings.data, *settings.validation) for path in expand(pattern)]
    file = next((name for name in names if is_file(name)), None)
    flags = {
        "--split": settings.split if settings.split != DEFAULT_SPLIT else None,
        "--subset": settings.subset,
        "--revision": settings.revision,
    }
    flags_given = [flag for flag, value in flags.items() if value is not None] if all(map(is_file, names)) else []
    # Of a file, the same examples would be trained and validated.
    flags_given += ["--validation-split"] if settings.validation_split is not None else []
    if file is not None and flags_given:
        raise DataError(
            f"{flags_given[0]} chooses a part of a data set, but {named(file)} is a file; leave it out"
            + (", or give a file with --validation." if flags_given[0] == "--validation-split" else ".")
        )


def _key(example: EncodedExample) -> bytes:
    """A key that is equal for equal examples."""
    return hashlib.sha256(repr((example.input_ids, example.labels)).encode()).digest()


def first_trained(examples: Sequence[EncodedExample], seed: int) -> EncodedExample:
    """The example that training starts with: the first that the Trainer's sampler draws with the seed."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples[int(order[0])]


def split(
    examples: list[EncodedExample], share: float, seed: int
) -> tuple[list[EncodedExample], list[EncodedExample]]:
    """Split off a share of the examples, drawn with a seed. Both parts keep the order of the data.

    Raises:
        DataError: if a share is wanted of a single example.
    """
    if not share:
        return examples, []
    if len(examples) < 2:
        raise DataError(
            f"There is only one example ({examples[0].place}), which cannot be split; add more or pass "
            "--validation-share 0."
        )
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    chosen = set(random.Random(seed).sample(range(len(examples)), count))
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [examples[i] for i in sorted(chosen)]


class _Reader:
    """Reads sources one after the other and counts examples."""

    def __init__(self, settings: TrainSettings, encoder: ExampleEncoder, limit: int, vocabulary: int) -> None:
        self.settings, self.encoder, self.limit, self.vocabulary = settings, encoder, limit, vocabulary
        self.sources: list[dict[str, object]] = []
        self.too_long = 0
        self._keys: list[list[bytes]] = []  # of the examples of each source

    def read(self, names: Sequence[str], split_name: str, use: str) -> list[EncodedExample]:
        examples: list[EncodedExample] = []
        seen: set[bytes] = set()
        for name in (path for pattern in names for path in expand(pattern)):
            settings = self.settings
            source = read_source(name, split=split_name, subset=settings.subset, revision=settings.revision)
            encoded = [self.encoder.encode(c) for c in to_conversations(source.records, settings.columns)]
            self._check_vocabulary(encoded)
            short_enough = self._within_limit(encoded)
            self._note(source, use, len(encoded) - len(short_enough))
            keys = [_key(example) for example in short_enough]
            self._keys.append(keys)
            self.sources[-1]["duplicates"] = len(keys) - len({*keys} - seen)
            seen |= {*keys}
            examples += short_enough
        if not examples:
            raise DataError(f"All {use} examples are longer than {self.limit} tokens; raise --max-length.")
        return examples

    def _note(self, source: DataSource, use: str, too_long: int) -> None:
        self.too_long += too_long
        self.sources.append(
            {
                "name": source.name,
                "use": use,
                "records": len(source.records),
                "blank_lines": source.blank,
                "too_long": too_long,
                "unused_columns": unused(source.records, self.settings.columns),
                **source.fingerprint,
            }
        )

    def note_shared(self, shared: set[bytes]) -> None:
        """Add to each source how many of its records are both trained on and validated on."""
        for source, keys in zip(self.sources, self._keys, strict=True):
            source["in_training_and_validation"] = sum(key in shared for key in keys)

    def _within_limit(self, examples: list[EncodedExample]) -> list[EncodedExample]:
        long = [example for example in examples if len(example.input_ids) > self.limit]
        if long and not self.settings.skip_long:
            raise DataError(
                f"{long[0].place}: the example has {len(long[0].input_ids)} tokens, but the limit is {self.limit} "
                f"({len(long)} of {len(examples)} examples are longer); shorten it, raise --max-length, or pass "
                "--skip-long to leave such examples out."
            )
        return [example for example in examples if len(example.input_ids) <= self.limit]

    def _check_vocabulary(self, examples: list[EncodedExample]) -> None:
        for example in examples:
            if max(example.input_ids) >= self.vocabulary:
                raise DataError(
                    f"{example.place}: token {max(example.input_ids)} is not in the model's vocabulary of "
                    f"{self.vocabulary}; use the tokenizer that belongs to the model."
                )
