# SPDX-License-Identifier: Apache-2.0
"""The tables and figures, as data.

Each is a function of the scale's sets of training examples: what they are about, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..baselines import METHODS
from ..demo.trial import Setup
from .published import paper_means
from .runs import MIXED, Contender, Experiment, Finish


# Registered methods that change a LoRA after its training.
AFTERWARDS = ("lora-rewound", "lora-intruders")
REWOUND = (0.75, 0.5, 0.25)
LOSSES = {"eaft": "EAFT", "mask-the-target": "Mask-the-Target"}
# This project's choice: 14 validations in the demo's 700 steps, and one worse by chance ends nothing.
EARLY = {"early_stopping": 3, "validate_every": 50}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
MASK_RATES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
EXPERTS = (1, 2, 4, 8, 16)
STRENGTHS = (0.5, 1.0, 2.0, 8.0)
# Methods that learn a sequence of tasks with one adapter.
GOING_ON = ("lora", "slim")


def setup(method: str, **changes: Any) -> Setup:
    """A method with changes to the usual settings."""
    return Setup(method, ({"target_modules": []} if METHODS[method].own_places else {}) | changes)


def slim(**fields: Any) -> Setup:
    """SLIM with changed fields of its configuration."""
    return setup("slim", slim=fields)


def contender(method: str) -> Contender:
    """A registered method with the usual settings."""
    return Contender(method, METHODS[method].title, setup(method), paper=paper_means(method))


def _alone(method: str, set_name: str, words: str) -> Contender:
    """A method that learns one of the sets. The paper's means are of another, and of all tasks together."""
    name = f"{method}-{set_name}"
    return replace(contender(method), name=name, data=set_name, learns=f"{words} alone", paper={})


def stage_name(method: str, stage: int) -> str:
    """Name of the contender that has learned so many tasks of a sequence."""
    return f"{method}-{stage}"


def alone_name(set_name: str) -> str:
    """Name of SLIM's adapter for one task of a sequence, which is not the first."""
    return f"slim-{set_name}"


def _methods() -> tuple[Contender, ...]:
    """All methods of the registry; LoRA first, SLIM last."""
    trained = [name for name in METHODS if name not in (*AFTERWARDS, "slim")]
    lora = setup("lora")
    return (
        *map(contender, trained),
        *(
            Contender(
                f"lora-rewound-{scale:g}",
                f"LoRA × {scale:g}",
                lora,
                Finish("lora-rewound", {"scale": scale}),
                line=METHODS["lora-rewound"].title,
            )
            for scale in REWOUND
        ),
        Contender("lora-intruders", METHODS["lora-intruders"].title, lora, Finish("lora-intruders")),
        Contender("lora-early", "LoRA, stopped early", setup("lora", **EARLY)),
        *(Contender(f"lora-{loss}", f"LoRA, {title}", setup("lora", loss=loss)) for loss, title in LOSSES.items()),
        *(Contender(f"slim-{loss}", f"SLIM, {title}", setup("slim", loss=loss)) for loss, title in LOSSES.items()),
        Contender("slim-early", "SLIM, stopped early", setup("slim", **EARLY)),
        *_everywhere(),
        contender("slim"),
    )


def _everywhere() -> tuple[Contender, ...]:
    """LoRA and SLIM on the Linears of attention too, where MixLoRA always is."""
    where = "on attention and MLPs"
    everywhere: dict[str, Any] = {"target_modules": []}
    loss, title = "mask-the-target", LOSSES["mask-the-target"]
    return (
        Contender("lora-all", f"LoRA {where}", setup("lora", **everywhere), line=METHODS["lora"].title),
        Contender(
            f"lora-all-{loss}",
            f"LoRA {where}, {title}",
            setup("lora", loss=loss, **everywhere),
            line=f"LoRA, {title}",
        ),
        Contender("slim-all", f"SLIM {where}", setup("slim", **everywhere), line=METHODS["slim"].title),
    )


def table1(sets: Mapping[str, str]) -> Experiment:
    """Each downstream task trained alone, and all together."""
    methods = ("lora", "dora", "loramoe", "mixlora", "mixlora-dy", "mola", "slim")
    rows = [contender(method) for method in methods]
    rows += [_alone(method, set_name, words) for set_name, words in sets.items() for method in methods]
    return Experiment("table1", "What is learned: all downstream tasks together, and each alone", tuple(rows))


def table2(sets: Mapping[str, str]) -> Experiment:
    """What is learned and forgotten by every method."""
    return Experiment("table2", "What is learned and what is forgotten, all methods", _methods())


def ablation(sets: Mapping[str, str]) -> Experiment:
    """SLIM with one thing changed."""
    usual = setup("slim")
    rows = (
        contender("lora"),
        contender("slim"),
        Contender("no-identity", "no identity experts", setup("slim", num_identity=0)),
        Contender("identity-1", "1 identity expert", setup("slim", num_identity=1)),
        Contender("gate-forced-open", "gate forced open when answering", usual, strength=0.0),
        Contender("gate-open", "gate open, in training too", slim(yield_strength=0.0)),
        Contender("gate-token", "gate by the token, not by the context", slim(distance_scope="token")),
        Contender("gate-alone", "each gate by its own router", slim(carry_up=False)),
        Contender("gate-from-first", "gate open for first tokens too", slim(context_warmup=0)),
        Contender("yield-calibrated", "yielding in the logits", slim(yield_mode="calibrated")),
        Contender(
            "yield-paper",
            "yielding as in the paper",
            slim(yield_mode="paper", distance="max", distance_scope="token", yield_strength=1.0),
        ),
        Contender("merge-none", "no dynamic merging", slim(merge="none")),
        Contender("merge-exact", "dynamic merging, exact", slim(merge="dare")),
        Contender("l1-0.1", "L1 loss × 0.1", slim(l1_coefficient=0.1)),
        Contender("l1-1", "L1 loss × 1", slim(l1_coefficient=1.0)),
        Contender("all-linears", "on attention and MLPs", setup("slim", target_modules=[])),
        Contender(
            "all-linears-open",
            "the same, gate forced open when answering",
            setup("slim", target_modules=[]),
            strength=0.0,
        ),
        Contender("attention", "on attention alone", setup("slim", target_modules=ATTENTION)),
        Contender("mlps", "on the MLPs alone", setup("slim", target_modules=MLP)),
        *(
            Contender(f"strength-{strength:g}", f"strength {strength:g} when answering", usual, strength=strength)
            for strength in STRENGTHS
        ),
        *(Contender(f"clusters-{n}", f"{n} clusters", slim(num_clusters=n)) for n in (1, 4, 16, 256)),
        *(Contender(f"momentum-{m:g}", f"momentum {m:g}", slim(cluster_momentum=m)) for m in (0.5, 0.99)),
    )
    return Experiment("ablation", "SLIM with one thing changed", rows, rival="slim")


def masking(sets: Mapping[str, str]) -> Experiment:
    """How much dynamic merging drops."""
    rows = [Contender(f"mask-{rate:g}", f"SLIM, mask rate {rate:g}", slim(mask_rate=rate)) for rate in MASK_RATES]
    return Experiment("masking", "SLIM by the share that dynamic merging drops", (contender("lora"), *rows))


def experts(sets: Mapping[str, str]) -> Experiment:
    """How many LoRA experts."""
    rows = [
        Contender(f"experts-{n}", f"SLIM, {n} experts" if n > 1 else "SLIM, 1 expert", setup("slim", num_experts=n))
        for n in EXPERTS
    ]
    note = "Each expert has the usual rank, so more experts have more parameters."
    return Experiment("experts", "SLIM by the number of its LoRA experts", (contender("lora"), *rows), note)


def steps_of(steps: Sequence[int]) -> Callable[[Mapping[str, str]], Experiment]:
    """The experiment with these numbers of training steps."""

    def build(sets: Mapping[str, str]) -> Experiment:
        rows = [
            Contender(f"{method}-{n}", f"{title}, {n} steps", setup(method), steps=n, line=title)
            for n in steps
            for method, title in ((name, METHODS[name].title) for name in ("lora", "slim"))
        ]
        note = "Each number of steps is a separate training, whose learning rate falls to 0 at its end."
        return Experiment("steps", "Forgetting over training steps", tuple(rows), note, f"lora-{max(steps)}")

    return build


def case_study(sets: Mapping[str, str]) -> Experiment:
    """Single questions with the answers of all contenders."""
    rows = [contender(method) for method in ("lora", "dora", "loramoe", "mixlora", "mola", "disel", "slim")]
    return Experiment("case-study", "Single questions with all answers", tuple(rows))


def noise(sets: Mapping[str, str]) -> Experiment:
    """General chat among the training examples."""
    rows = []
    for method in ("lora", "disel", "slim"):
        title = METHODS[method].title
        rows.append(contender(method))
        rows.append(Contender(f"{method}-noisy", f"{title}, 5 % chat", setup(method), data="noisy", scored_as=MIXED))
    note = (
        "Whether the gate opens for chat too, once chat is part of the training data, shows in the share of such "
        "prompts past LoRA: at demo scale those of small talk."
    )
    return Experiment("noise", "5 % general chat among the training examples", tuple(rows), note)


def sequence(sets: Mapping[str, str]) -> Experiment:
    """The downstream tasks one after another: LoRA and SLIM going on, and SLIM with an adapter for each task."""
    rows: list[Contender] = []
    for method in GOING_ON:
        earlier: Contender | None = None
        for stage, set_name in enumerate(sets, 1):
            title = f"{METHODS[method].title} after {', then '.join(list(sets.values())[:stage])}"
            earlier = Contender(
                stage_name(method, stage), title, setup(method), data=set_name, scored_as=MIXED, after=earlier
            )
            rows.append(earlier)
    # The first task's is the first stage.
    rows += [
        Contender(alone_name(set_name), f"SLIM on {words} alone", setup("slim"), data=set_name, scored_as=MIXED)
        for set_name, words in list(sets.items())[1:]
    ]
    note = (
        "With an adapter for each task, a question is answered by the adapter that the smallest share of it "
        "bypasses; the task of the question is not given."
    )
    title = "The downstream tasks learned one after another"
    return Experiment("sequence", title, tuple(rows), note, stage_name("lora", len(sets)))


def overhead(sets: Mapping[str, str]) -> Experiment:
    """What each method costs."""
    rows = tuple(map(contender, (name for name in METHODS if name not in AFTERWARDS)))
    return Experiment("overhead", "Parameters, training time and memory", rows)


def bases(sets: Mapping[str, str]) -> Experiment:
    """LoRA and SLIM on one of several bases."""
    return Experiment("bases", "Other bases", (contender("lora"), contender("slim")))


EXPERIMENTS: Mapping[str, Callable[[Mapping[str, str]], Experiment]] = {
    "table1": table1,
    "table2": table2,
    "ablation": ablation,
    "masking": masking,
    "experts": experts,
    "case-study": case_study,
    "noise": noise,
    "overhead": overhead,
    "sequence": sequence,
    "bases": bases,
}
