# SPDX-License-Identifier: Apache-2.0
"""The configuration of SLIM: every number of the paper and every choice the paper leaves open."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Optional, Union

from peft.config import PeftConfig

from .fields import TOO_STRONG, abbreviated, check_choice, check_integer, check_number


FORMAT_VERSION = 4
# What the variance of a cluster of contexts is at least, as a share of the tokens' variance.
VARIANCE_FLOOR = 0.1
# The opening is searched for in the earlier ids that a cache remembers.
LONGEST_OPENING = 32


class SlimType(str, Enum):
    """PEFT's closed ``PeftType`` enum has no room for outside methods; a ``str`` enum of our own compares equal to the
    saved string and has the ``.value`` that PEFT and transformers read."""

    SLIM = "SLIM"


@dataclass
class SlimConfig(PeftConfig):
    """Configuration of SLIM, the soft mixture of LoRA and identity experts (Han et al., NAACL 2025).

    One target Linear gets `num_experts` LoRA experts of rank `r`, `num_identity` experts that contribute nothing, and
    a router that keeps the best `top_k` of them for each token. The defaults are the paper's where it states them;
    otherwise the default is what measured best here.

    Args:
        r (`int`):
            Rank of each LoRA expert. The total rank of a Linear is `num_experts * r`. Default `16`: the paper's.
        num_experts (`int`):
            Number of LoRA experts, E. With `num_experts=1` and `num_identity=0` there is nothing to route: the layer
            is a plain LoRA, without router and clusters. Default `8`: the paper's.
        num_identity (`int`):
            Number of identity experts, I. An identity expert contributes zero (Eq. 2). With 0 there is nothing to
            yield to: the distance then acts through a gate alone. Default `2`: the paper's.
        top_k (`int`):
            Experts kept per token, K, out of E + I. Default `2`: the paper's.
        alpha (`float`):
            LoRA scaling numerator; the factor is `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`. Default `32.0`:
            this project's choice, twice the rank as is usual for LoRA.
        use_rslora (`bool`):
            Divide `alpha` by the square root of the rank. Default `False`: PEFT's own for LoRA.
        dropout (`float`):
            Dropout on the input of the LoRA experts while training. The router sees the input unchanged. Default
            `0.0`: PEFT's own for LoRA.
        target_modules (`Union[list[str], str]`, *optional*):
            Names of the Linears to adapt, a regular expression, or `"all-linear"`: every Linear except the output
            head. Unset means `"all-linear"`. Default `None`: the paper's.
        exclude_modules (`Union[list[str], str]`, *optional*):
            Names (or a regular expression) of modules that are not adapted although they match `target_modules`.
            Default `None`: PEFT's own for LoRA.
        modules_to_save (`list[str]`, *optional*):
            Other modules to train and save whole, such as a classification head. Default `None`: PEFT's own for LoRA.
        trainable_token_indices (`Union[list[int], dict[str, list[int]]]`, *optional*):
            Tokens whose rows in the input embedding are trained too, or by name of the embedding and the head.
            Default `None`: PEFT's own for LoRA.
        layers_to_transform (`Union[list[int], int]`, *optional*):
            Adapt only the blocks with these indices. Default `None`: PEFT's own for LoRA.
        layers_pattern (`Union[list[str], str]`, *optional*):
            Name of the list that holds the blocks, if it is an unusual one. Default `None`: PEFT's own for LoRA.
        rank_pattern (`dict[str, int]`):
            Ranks of single modules, by name or regular expression, in place of `r`. Default `{}`: PEFT's own for LoRA.
        alpha_pattern (`dict[str, float]`):
            Scaling numerators of single modules, in place of `alpha`. Default `{}`: PEFT's own for LoRA.
        init_weights (`bool`):
            Start with B = 0, so that a new adapter changes nothing. `False` draws B as well (for tests). Default
            `True`: PEFT's own for LoRA.
        num_clusters (`int`):
            Sliding clusters per router, N. Default `16`: this project's choice; `slim paper ablation` compares others.
        cluster_init (`"data"` or `"random"`):
            `"data"` takes the first centres from the first training batch; `"random"` draws them from a normal
            distribution (the paper's). Default `"data"`: this project's choice, so that no cluster begins where no
            text is.
        cluster_momentum (`float`):
            Share of the old centre and variance that one training forward keeps, 0 <= momentum < 1. Default `0.95`:
            this project's choice, since the paper gives no number.
        distance_scope (`"context"` or `"token"`, *optional*):
            Whose distance counts. `"context"`: that of the running mean of the Linear's input over the sequence so
            far, the causal counterpart of the paper's sample. It distinguishes another task from the trained one,
            which the distance of a single token (`"token"`) cannot: most tokens of any text occur in training. Unset
            means `"context"`, and `"token"` in adapters of format 1. Default `None`: this project's choice; what it
            changes is measured (docs/results.md).
        distance (`"rms"` or `"max"`):
            Statistic of |z| over the channels: the root of the mean square, which a few outlier channels do not
            dominate, or the maximum (the paper's). Default `"rms"`: this project's choice, for that reason.
        yield_mode (`"gate"`, `"calibrated"` or `"paper"`):
            How LoRA experts yield as the distance d grows (`method/gate.py`). `"gate"` multiplies their weights by
            g = clamp(1 - yield_strength * relu(d - reference), 0, 1); the identity experts get the rest. Where g is 0
            the Linear's output is the base's, bit for bit. The other two subtract from the LoRA experts' logits:
            `"calibrated"` the same excess times `yield_strength`, `"paper"` `yield_strength * d`. A router with large
            logits can outweigh what is subtracted. With the paper's mode, LoRA experts start at a disadvantage equal
            to the usual distance of training tokens. If I >= K, most tokens then keep only identity experts, and the
            router learns nothing from them. Default `"gate"`: this project's choice, for the exact 0.
        variance_floor (`float`, *optional*):
            Share of the tokens' variance that a cluster of contexts has at least in each channel: contexts that are
            the same in every training text, such as that of its first words, have no variance of their own, and the
            slightest deviation would look far. Unset means 0.1, but 0 in adapters of formats 1 to 3. It applies only
            to contexts. Default `None`: this project's choice, measured among four (docs/method.md).
        carry_up (`bool`, *optional*):
            Whether a gate follows the mean excess of all routers that have run so far in the forward, or only that of
            its own router. A context that most routers reject is within the reference at some; with
            the mean, most of these close too. Unset means yes, but no in adapters of formats 1 and 2. It applies only
            to contexts, and not with `"paper"`. Default `None`: this project's choice; it is measured
            (docs/results.md).
        yield_strength (`float`):
            Factor in front of the distance. The paper's is 1; a gate of strength 0 is always open. See
            `slim_core.set_gate` to change it at inference. Logits grow with z too: with `"calibrated"` and `"paper"` a
            distant token is sure to yield only if this exceeds the sum of |w_i - w_j| over the channels (with `"rms"`,
            sqrt(C_in) times the norm), for router weights w_i of LoRA and w_j of identity experts. Default `4.0`: this
            project's choice, measured beside others (docs/results.md).
        yield_quantile (`float`):
            The quantile of the training distances that counts as in domain, by the length of the context. Not used by
            `"paper"`. Default `0.99`: this project's choice, so that 1 % of what was trained lies beyond it.
        context_warmup (`int`):
            Tokens at the beginning of a context for which the gate is closed, in training too: they carry no
            information about what follows. The first is the same for every text, the begin token or the end of a
            turn's opening; if the gate were open there, no answer could equal the base's bit for bit. Default `1`:
            this project's choice, for that reason.
        turn_opening (`list[int]`, *optional*):
            Token ids that open a user's turn. A new context begins at the last of them, so that in a conversation
            each turn is judged by itself. `slim_core.turn_opening(tokenizer)` finds them in a chat template, and the
            training command sets them. Unset means that contexts span all turns. Default `None`: this project's
            choice, since a configuration does not know the tokenizer.
        router_hidden (`int`):
            Width of a residual block before the router's linear map; 0 for only the linear map. Default `0`: this
            project's choice, since the paper does not describe its router further.
        router_scope (`"linear"` or `"block"`):
            One router per target Linear, or one for the Linears that read the same input (q/k/v; gate/up). Default
            `"linear"`: this project's choice, since the paper does not say what shares a router.
        merge (`"fast"`, `"dare"` or `"none"`):
            Dynamic merging: `"fast"` drops whole rows of B and columns of A (the paper's), `"dare"` draws an
            element-wise mask on each product B_i A_i (the slow reference), `"none"` switches it off. The experts of a
            Linear lose the same rows and columns, so that what survives can be sliced out of one stack. Default
            `"fast"`: the paper's.
        mask_rate (`float`):
            Share p of the entries of a product that dynamic merging drops, 0 <= p < 1. Default `0.1`: this project's
            choice; `slim paper masking` compares others.
        mask_rescale (`bool`):
            Multiply what survives by 1 / (1 - p), as DARE does. Default `False`: this project's choice, since the
            paper's formula has no such factor.
        mask_seed (`int`):
            Seed of the masks used at inference. Default `0`: this project's choice; any other would do.
        l1_coefficient (`float`):
            Factor of the L1 loss on the factors, which makes dropping harmless. See `slim_core.extra_losses`. 0 leaves
            it out. Default `0.0`: this project's choice, since the paper has one but does not say how large it is.
        balance_coefficient (`float`):
            Factor of a load-balance loss over the LoRA experts, mean over layers of E * sum_e f_e P_e, which is 1 when
            they are used evenly. Default `0.0`: the paper's, which has none.
        format_version (`int`):
            Version of the saved format. Set by the library.
        base_fingerprint (`dict`, *optional*):
            Names and shapes of the adapted Linears of the base model. Set by the library, compared on loading.
    """

    r: int = field(default=16, metadata={"help": "Rank of each LoRA expert."})
    num_experts: int = field(default=8, metadata={"help": "Number of LoRA experts, E."})
    num_identity: int = field(default=2, metadata={"help": "Number of identity experts, I; they contribute nothing."})
    top_k: int = field(default=2, metadata={"help": "Experts kept per token, K, out of E + I."})
    alpha: float = field(default=32.0, metadata={"help": "LoRA scaling numerator; the factor is alpha / r."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r) instead of alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the LoRA experts' input while training."})
    target_modules: Optional[Union[list[str], set[str], str]] = field(
        default=None,
        metadata={"help": "Names of the Linears to adapt, a regular expression, or 'all-linear'."},
    )
    exclude_modules: Optional[Union[list[str], set[str], str]] = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules to leave alone."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Other modules to train and save whole, such as a classification head."}
    )
    trainable_token_indices: Optional[Union[list[int], dict[str, list[int]]]] = field(
        default=None, metadata={"help": "Tokens whose rows are trained too, of the embedding or by module name."}
    )
    layers_to_transform: Optional[Union[list[int], int]] = field(
        default=None, metadata={"help": "Adapt only the blocks with these indices."}
    )
    layers_pattern: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Name of the list that holds the blocks, if it is unusual."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Ranks of single modules, by name or regular expression."}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Scaling numerators of single modules, by name or regular expression."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start with B = 0, so that a new adapter changes nothing."}
    )
    num_clusters: int = field(default=16, metadata={"help": "Sliding clusters per router, N."})
    cluster_init: Literal["data", "random"] = field(
        default="data", metadata={"help": "First centres: 'data' (first training batch) or 'random' (the paper's)."}
    )
    cluster_momentum: float = field(
        default=0.95, metadata={"help": "Share of the old centre and variance that one training forward keeps."}
    )
    distance_scope: Optional[Literal["context", "token"]] = field(
        default=None,
        metadata={"help": "Whose distance counts: that of the 'context' so far (default), or of the 'token' alone."},
    )
    distance: Literal["max", "rms"] = field(
        default="rms", metadata={"help": "Statistic of |z| over channels: 'rms' or 'max' (the paper's)."}
    )
    yield_mode: Literal["gate", "calibrated", "paper"] = field(
        default="gate",
        metadata={
            "help": "'gate' multiplies the LoRA weights by 1 - strength * excess over a quantile of the training "
            "distances; 'calibrated' subtracts the excess from their logits, 'paper' the distance."
        },
    )
    yield_strength: float = field(default=4.0, metadata={"help": "Factor in front of the distance; the paper's is 1."})
    yield_quantile: float = field(
        default=0.99, metadata={"help": "Quantile of the training distances that counts as in domain."}
    )
    variance_floor: Optional[float] = field(
        default=None,
        metadata={"help": "Share of the tokens' variance that a cluster of contexts has at least; 0.1 by default."},
    )
    carry_up: Optional[bool] = field(
        default=None,
        metadata={"help": "Follow the mean excess of all routers so far (default), or only that of this router."},
    )
    context_warmup: int = field(
        default=1, metadata={"help": "Tokens at the beginning of a context that go past the LoRA experts."}
    )
    turn_opening: Optional[list[int]] = field(
        default=None, metadata={"help": "Token ids that open a user's turn, where a new context begins."}
    )
    router_hidden: int = field(
        default=0, metadata={"help": "Width of a residual block before the router's linear map; 0 for none."}
    )
    router_scope: Literal["linear", "block"] = field(
        default="linear",
        metadata={"help": "One router per 'linear', or per 'block' of Linears with the same input (q/k/v; gate/up)."},
    )
    merge: Literal["fast", "dare", "none"] = field(
        default="fast",
        metadata={"help": "Dynamic merging: 'fast' (rows and columns), 'dare' (entries, slow) or 'none'."},
    )
    mask_rate: float = field(default=0.1, metadata={"help": "Share p of the entries that dynamic merging drops."})
    mask_rescale: bool = field(default=False, metadata={"help": "Multiply what survives by 1 / (1 - p)."})
    mask_seed: int = field(default=0, metadata={"help": "Seed of the masks used at inference."})
    l1_coefficient: float = field(default=0.0, metadata={"help": "Factor of the L1 loss on the factors."})
    balance_coefficient: float = field(
        default=0.0, metadata={"help": "Factor of the load-balance loss over the LoRA experts (1 when even)."}
    )
    format_version: int = field(
        default=FORMAT_VERSION, metadata={"help": "Version of the saved format. Set by the library."}
    )
    base_fingerprint: Optional[dict[str, str]] = field(
        default=None,
        metadata={"help": "Names and shapes of the adapted Linears of the base. Set by the library."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SlimType.SLIM
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)
        self.rank_pattern = self.rank_pattern or {}
        self.alpha_pattern = self.alpha_pattern or {}
        # The fingerprint from a saved file. Stored separately from the field, which is rewritten for each model the
        # config is used on: only a config from a file can mismatch.
        self._saved_fingerprint = self.base_fingerprint
        # Set by the model that names them.
        self._asked_for_all_linear = False
        self._check_format()
        if self.distance_scope is None:
            self.distance_scope = "token" if self.format_version == 1 else "context"
        if self.carry_up is None:
            self.carry_up = self.format_version > 2
        if self.variance_floor is None:
            self.variance_floor = VARIANCE_FLOOR if self.format_version > 3 else 0.0
        if self.format_version == 1 and self.yield_mode == "gate":
            # The default at that time.
            self.yield_mode = "calibrated"
        self._check_routing()
        self._check_ranges()
        self._check_layers()

    @property
    def carries_up(self) -> bool:
        """Whether a router's excess is carried to the routers above it."""
        if not self.carry_up:
            return False
        return self.distance_scope == "context" and self.yield_mode != "paper"

    @property
    def context_floor(self) -> float:
        """The share of the tokens' variance that a cluster has at least; 0 where clusters are those of tokens."""
        return (self.variance_floor or 0.0) if self.distance_scope == "context" else 0.0

    @property
    def routed(self) -> bool:
        """Whether there is anything to route. A single LoRA expert always has weight 1."""
        return self.num_experts + self.num_identity > 1

    def scaling(self, r: int, alpha: float) -> float:
        """LoRA's factor s for a module of rank `r` and numerator `alpha`."""
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def _check_format(self) -> None:
        check_integer("format_version", self.format_version, 1)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This SLIM adapter is saved in format {abbreviated(self.format_version)}; the installed slim_core "
                f"reads formats up to {FORMAT_VERSION}. Upgrade slim_core to load it."
            )
        if self.format_version == 1 and self.distance_scope == "context":
            raise ValueError(
                'Adapters of format 1 have no contexts: leave `format_version` out, or use distance_scope="token".'
            )
        if self.format_version < 3 and self.carry_up:
            raise ValueError(
                "Adapters of formats 1 and 2 do not carry excesses up: leave `format_version` or `carry_up` out."
            )
        if self.format_version < 4 and self.variance_floor:
            raise ValueError(
                "Adapters of formats 1 to 3 have no floor of the variance: leave `format_version` or `variance_floor` "
                "out."
            )
        if not isinstance(self.base_fingerprint, (dict, type(None))):
            raise ValueError(
                "`base_fingerprint` must be a table of shapes by name. The library sets it; leave it out."
            )

    def _check_routing(self) -> None:
        for name, least in (("r", 1), ("num_experts", 1), ("num_identity", 0), ("num_clusters", 1), ("top_k", 1)):
            check_integer(name, getattr(self, name), least)
        check_integer("router_hidden", self.router_hidden, 0)
        total = self.num_experts + self.num_identity
        if self.top_k > total:
            raise ValueError(
                f"`top_k` is {abbreviated(self.top_k)}, but there are only {total} experts "
                f"(num_experts={self.num_experts} + num_identity={self.num_identity}); choose 1 to {total}."
            )
        if self.top_k == 1 and total > 1:
            warnings.warn(
                "With `top_k=1` the one expert that is kept always has weight 1, so the router gets no gradient and "
                "learns nothing; choose 2 or more.",
                stacklevel=4,
            )
        check_choice("cluster_init", self.cluster_init, ("data", "random"))
        check_choice("distance", self.distance, ("max", "rms"))
        check_choice("distance_scope", self.distance_scope, ("context", "token"))
        check_choice("yield_mode", self.yield_mode, ("gate", "calibrated", "paper"))
        check_choice("router_scope", self.router_scope, ("linear", "block"))
        check_choice("merge", self.merge, ("fast", "dare", "none"))
        for name in ("use_rslora", "init_weights", "mask_rescale", "carry_up"):
            check_choice(name, getattr(self, name), (True, False))

    def _check_ranges(self) -> None:
        check_number("alpha", self.alpha, 0, strict=True)
        check_number("dropout", self.dropout, 0, below=1)
        check_number("cluster_momentum", self.cluster_momentum, 0, below=1)
        check_number("variance_floor", self.variance_floor, 0, below=1)
        check_number("yield_strength", self.yield_strength, 0, below=TOO_STRONG)
        check_number("yield_quantile", self.yield_quantile, 0, below=1, strict=True)
        check_integer("context_warmup", self.context_warmup, 0)
        self._check_turn_opening()
        check_number("mask_rate", self.mask_rate, 0, below=1)
        check_number("l1_coefficient", self.l1_coefficient, 0)
        check_number("balance_coefficient", self.balance_coefficient, 0)
        check_integer("mask_seed", self.mask_seed, 0)
        if self.mask_seed >= 2**31:
            raise ValueError(f"`mask_seed` must be below 2**31, not {abbreviated(self.mask_seed)}.")
        for pattern, rank in self.rank_pattern.items():
            check_integer(f"rank_pattern[{pattern!r}]", rank, 1)
        for pattern, alpha in self.alpha_pattern.items():
            check_number(f"alpha_pattern[{pattern!r}]", alpha, 0, strict=True)

    def _check_turn_opening(self) -> None:
        if self.turn_opening is None:
            return
        if not isinstance(self.turn_opening, (list, tuple)) or not 0 < len(self.turn_opening) <= LONGEST_OPENING:
            raise ValueError(f"`turn_opening` must be a list of 1 to {LONGEST_OPENING} token ids, or left out.")
        for token in self.turn_opening:
            check_integer("turn_opening", token, 0)
            if token >= 2**31:
                raise ValueError(f"`turn_opening` must hold ids below 2**31, not {abbreviated(token)}.")
        self.turn_opening = list(self.turn_opening)

    def _check_layers(self) -> None:
        if not isinstance(self.target_modules, set) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` needs `target_modules` as a list of names; a regular expression can name the "
                "blocks itself."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` is set, so `layers_to_transform` must say which blocks.")
