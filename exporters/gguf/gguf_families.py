"""The architectures of `transformers` that can be written as GGUF, and the settings that llama.cpp does not support.

References:
    llama.cpp, src/models/*.cpp and conversion/*.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...spaces.nearest import nearest

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_LINEAR = ("default", "linear")


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of llama.cpp and the settings that it supports.

    Attributes:
        name: llama.cpp's name of the architecture.
        activations: names in `transformers` of the activations that llama.cpp runs it with.
        rotary: names in `transformers` of the rotary types that can be written.
        scaled: number of blocks of the family's largest model, whose attention is scaled by hidden size / number of
            heads instead of the size of a head; None if the configuration has no setting for the scale.
        grouped: whether several query heads may share a key and value head.
        lacking: whether llama.cpp's architecture `deci`, in which blocks may lack a branch, computes such models too.
        period: the number p if every p-th block has no sliding window and the other blocks have one; 0 if no block has
            a sliding window.
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    rotary: tuple[str, ...] = _LINEAR
    scaled: int | None = None
    grouped: bool = True
    lacking: bool = False
    period: int = 0


FAMILIES = {
    "llama": Family("llama", rotary=(*_LINEAR, "llama3"), lacking=True),
    "mistral": Family("llama", rotary=(*_LINEAR, "llama3"), lacking=True),
    "qwen2": Family("qwen2", lacking=True),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", _TANH),
    "gemma2": Family("gemma2", _TANH, scaled=46, period=2),
    "gemma3_text": Family("gemma3", _TANH, scaled=62, period=6),
    "phi3": Family("phi3"),
    "gpt2": Family("gpt2", _TANH, grouped=False),
    # llama.cpp approximates the gelu of `transformers`; the error is far below that of its rounding of activations.
    "gpt_neox": Family("gptneox", (*_TANH, "gelu"), grouped=False),
}
"""Architecture of llama.cpp by the `model_type` of `transformers`."""


def architecture(config: Any) -> str:
    """Return llama.cpp's name of a model's architecture, given the model's configuration.

    Raises:
        ValueError: the architecture is not in `FAMILIES`, or llama.cpp would compute another function than the model.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"models of type {kind!r} are not written as GGUF; {nearest(kind, FAMILIES)}")
    for difference in differences(config):
        raise ValueError(f"llama.cpp runs {kind} {difference}; export with --format hf")
    return FAMILIES[kind].name


def differences(config: Any) -> Iterator[str]:
    """Yield what llama.cpp would compute differently, as phrases that complete "llama.cpp runs the model ..."."""
    family = FAMILIES[config.model_type]
    window = getattr(config, "sliding_window", None)
    windowed = window and getattr(config, "use_sliding_window", True)
    if windowed and not family.period and window < config.max_position_embeddings:
        yield f"without the sliding window of {window} tokens"
    if (found := activation(config)) not in family.activations:
        yield f"with {family.activations[0]}, not {found}"
    for kind, rope in rotary(config).items():
        allowed = family.rotary if kind != "sliding_attention" else ("default",)
        if rope["rope_type"] not in allowed:
            yield f"without the rotary type {rope['rope_type']!r}, which cannot be written"
    if family.scaled is not None and (scalar := _scalar(config, family)) != config.query_pre_attn_scalar:
        yield f"with query_pre_attn_scalar {scalar:g}, not {config.query_pre_attn_scalar:g}"
    yield from _OWN.get(config.model_type, lambda config: ())(config)


def activation(config: Any) -> str:
    """Return the name in `transformers` of the activation in the MLPs."""
    names = ("hidden_activation", "hidden_act", "activation_function")
    return str(next(found for name in names if (found := getattr(config, name, None))))


def rotary(config: Any) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters by kind of attention.

    If all blocks have the same parameters, the only key is the empty string. The result is empty for GPT-2, which has
    no rotary embedding.
    """
    found = getattr(config, "rope_parameters", None)
    if found is None:
        return {}
    kinds = found if "full_attention" in found else {"": found}
    return {kind: {"rope_type": "default", **kinds[kind]} for kind in kinds}


def head_size(config: Any) -> int:
    """Return the number of elements of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _scalar(config: Any, family: Family) -> int:
    """Return the number by whose square root llama.cpp divides attention scores.

    llama.cpp recognises the largest model of a family by its number of blocks.
    """
    largest = config.num_hidden_layers == family.scaled
    return config.hidden_size // config.num_attention_heads if largest else head_size(config)


def _gemma2(config: Any) -> Iterator[str]:
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not getattr(config, name):
            yield f"with {name}, which is off in this model"


def _gemma3(config: Any) -> Iterator[str]:
    if config.attn_logit_softcapping:
        yield "without attn_logit_softcapping"
    if config.use_bidirectional_attention:
        yield "with causal attention only"


def _phi3(config: Any) -> Iterator[str]:
    if head_size(config) * config.num_attention_heads != config.hidden_size:
        yield f"with heads whose sizes add up to the hidden size {config.hidden_size}"


def _gpt2(config: Any) -> Iterator[str]:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        yield "with attention scaled only by the size of a head"


def _gpt_neox(config: Any) -> Iterator[str]:
    if config.tie_word_embeddings:
        yield "with a head that is not tied to the embedding"
    if not config.attention_bias:
        yield "with biases in attention"


_OWN = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
"""Functions that yield further differences of one architecture, by `model_type`."""
