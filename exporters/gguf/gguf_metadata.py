"""Metadata of GGUF files: the sizes and settings of a model that llama.cpp needs besides the tensors."""

from typing import Any

from gguf import GGUFWriter, RopeScalingType

from .gguf_families import FAMILIES, head_size, rotary
from .gguf_target import Target


def add_metadata(writer: GGUFWriter, target: Target, name: str) -> None:
    """Add all metadata except the tokenizer to a GGUF file.

    Args:
        writer: writer of the file.
        target: the model that is written.
        name: name of the model.
    """
    config = target.config
    size = head_size(config)
    writer.add_name(name)
    writer.add_quantization_version(2)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(target.widths(_width(config)))
    writer.add_head_count(target.heads(config.num_attention_heads))
    if FAMILIES[config.model_type].grouped:
        writer.add_head_count_kv(target.heads(config.num_key_value_heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
    _add_rotary(writer, config)
    _add_windows(writer, config)
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if value := getattr(config, key, None):
            add(value)


def _width(config: Any) -> int:
    """Return the inner width of the source's MLPs."""
    found = (
        config.n_inner or 4 * config.hidden_size if config.model_type == "gpt2" else config.intermediate_size
    )
    return int(found)


def _add_rotary(writer: GGUFWriter, config: Any) -> None:
    for kind, rope in rotary(config).items():
        if kind == "sliding_attention":
            writer.add_rope_freq_base_swa(rope["rope_theta"])
            continue
        writer.add_rope_dimension_count(int(head_size(config) * rope.get("partial_rotary_factor", 1)))
        writer.add_rope_freq_base(rope["rope_theta"])
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])


def _add_windows(writer: GGUFWriter, config: Any) -> None:
    """Add the size of the sliding window, and which blocks have one if they do not follow llama.cpp's period.

    Without such a list, llama.cpp gives a window to every block except the last one of each period.
    """
    period = FAMILIES[config.model_type].period
    if not period:
        return
    writer.add_sliding_window(config.sliding_window)
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    if windows != [(i + 1) % period > 0 for i in range(len(windows))]:
        writer.add_sliding_window_pattern(windows)
