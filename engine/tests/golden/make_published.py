"""Writes small random models in the published forms of LLaDA, Dream and MDLM, with what independent code computes from them.

Usage (with torch, transformers, safetensors and numpy installed):
    python make_published.py
Writes published/{llada,dream,mdlm,llama}/{config.json,model.safetensors,expected.bin} beside this script.

expected.bin: u32 length, then length x u32 token ids, then length x vocabulary x f32 logits (little-endian).
References: LLaDA and Dream by the Llama and Qwen2 classes of `transformers` with a mask that hides nothing; MDLM by the DiT of its
paper (arXiv 2406.07524) written out below, its adaLN unfolded; Llama left to right.
"""

import json
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent / "published"
HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE, VOCABULARY, LENGTH = 32, 2, 4, 2, 48, 40, 11


def write(name, config, tensors, tokens, logits):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / "model.safetensors")
    ids = tokens[0].tolist()
    numbers = logits[0].float().reshape(-1).tolist()
    (folder / "expected.bin").write_bytes(struct.pack(f"<I{len(ids)}I", len(ids), *ids)
                                          + struct.pack(f"<{len(numbers)}f", *numbers))


def shake(model):
    """Weights of a size at which every part matters, norms and biases too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model.eval()


def shared(**more):
    return dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
                intermediate_size=WIDE, vocab_size=VOCABULARY, max_position_embeddings=64, rms_norm_eps=1e-5, **more)


def everything(tokens):
    return torch.zeros(1, 1, tokens.shape[1], tokens.shape[1])


def main():
    torch.manual_seed(11)
    tokens = torch.randint(0, VOCABULARY, (1, LENGTH))
    with torch.no_grad():
        config = LlamaConfig(**shared(rope_theta=1e4), tie_word_embeddings=False, attn_implementation="eager")
        model = shake(LlamaForCausalLM(config))
        write("llama", dict(model_type="llama", **shared(rope_theta=1e4)), model.state_dict(), tokens,
              model(tokens).logits)

        config = LlamaConfig(**{**shared(rope_theta=5e5), "num_key_value_heads": HEADS}, tie_word_embeddings=False,
                             attn_implementation="eager")
        model = shake(LlamaForCausalLM(config))
        logits = model(tokens, attention_mask=everything(tokens)).logits
        assert not torch.allclose(logits, model(tokens).logits), "the mask must make a difference"
        names = {"model.embed_tokens.weight": "model.transformer.wte.weight", "model.norm.weight": "model.transformer.ln_f.weight",
                 "lm_head.weight": "model.transformer.ff_out.weight"}
        parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj",
                 "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "post_attention_layernorm": "ff_norm",
                 "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out"}
        for layer in range(LAYERS):
            for theirs, ours in parts.items():
                names[f"model.layers.{layer}.{theirs}.weight"] = f"model.transformer.blocks.{layer}.{ours}.weight"
        tensors = {names[key]: value for key, value in model.state_dict().items()}
        write("llada", dict(model_type="llada", d_model=HIDDEN, n_heads=HEADS, n_kv_heads=HEADS, n_layers=LAYERS,
                            mlp_hidden_size=WIDE, vocab_size=VOCABULARY, max_sequence_length=64, rope_theta=5e5,
                            rms_norm_eps=1e-5, mask_token_id=VOCABULARY - 2), tensors, tokens, logits)

        config = Qwen2Config(**shared(rope_theta=1e6), tie_word_embeddings=False, attn_implementation="eager")
        model = shake(Qwen2ForCausalLM(config))
        logits = model(tokens, attention_mask=everything(tokens)).logits
        assert not torch.allclose(logits, model(tokens).logits), "the mask must make a difference"
        write("dream", dict(model_type="Dream", mask_token_id=VOCABULARY - 3, **shared(rope_theta=1e6)),
              model.state_dict(), tokens, logits)

        write("mdlm", *mdlm(tokens))


def mdlm(tokens):
    condition_width, time_width = 12, 256
    draw = lambda *shape: torch.randn(*shape) / shape[-1] ** 0.5  # noqa: E731
    weights = {"vocab_embed.embedding": torch.randn(VOCABULARY, HIDDEN),
               "sigma_map.mlp.0.weight": draw(condition_width, time_width), "sigma_map.mlp.0.bias": torch.randn(condition_width),
               "sigma_map.mlp.2.weight": draw(condition_width, condition_width),
               "sigma_map.mlp.2.bias": torch.randn(condition_width),
               "output_layer.norm_final.weight": torch.randn(HIDDEN) + 1,
               "output_layer.linear.weight": draw(VOCABULARY, HIDDEN), "output_layer.linear.bias": torch.randn(VOCABULARY),
               "output_layer.adaLN_modulation.weight": draw(2 * HIDDEN, condition_width),
               "output_layer.adaLN_modulation.bias": torch.randn(2 * HIDDEN)}
    for layer in range(LAYERS):
        own = {"norm1.weight": torch.randn(HIDDEN) + 1, "attn_qkv.weight": draw(3 * HIDDEN, HIDDEN),
               "attn_out.weight": draw(HIDDEN, HIDDEN), "norm2.weight": torch.randn(HIDDEN) + 1,
               "mlp.0.weight": draw(4 * HIDDEN, HIDDEN), "mlp.0.bias": torch.randn(4 * HIDDEN),
               "mlp.2.weight": draw(HIDDEN, 4 * HIDDEN), "mlp.2.bias": torch.randn(HIDDEN),
               "adaLN_modulation.weight": draw(6 * HIDDEN, condition_width),
               "adaLN_modulation.bias": torch.randn(6 * HIDDEN)}
        weights.update({f"blocks.{layer}.{key}": value for key, value in own.items()})
    linear = lambda x, name: F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))  # noqa: E731
    norm = lambda x, name: F.layer_norm(x, [HIDDEN]) * weights[f"{name}.weight"]  # noqa: E731
    modulate = lambda x, shift, scale: x * (1 + scale) + shift  # noqa: E731

    half = time_width // 2
    rates = torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(half) / half)
    angles = torch.zeros(1, 1) * rates
    condition = torch.cat([angles.cos(), angles.sin()], dim=-1)
    condition = F.silu(linear(F.silu(linear(condition, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    width = HIDDEN // HEADS
    angles = torch.arange(LENGTH)[:, None] / 1e4 ** (torch.arange(0, width, 2) / width)
    cosine, sine = (torch.cat([part, part], dim=-1)[None, :, None] for part in (angles.cos(), angles.sin()))

    def rotate(x):
        first, second = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-second, first], dim=-1) * sine

    x = weights["vocab_embed.embedding"][tokens]
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        parts = linear(condition, at + "adaLN_modulation")[:, None].chunk(6, dim=2)
        shift, scale, gate, feed_shift, feed_scale, feed_gate = parts
        qkv = linear(modulate(norm(x, at + "norm1"), shift, scale), at + "attn_qkv").view(1, LENGTH, 3, HEADS, width)
        query, key, value = rotate(qkv[:, :, 0]), rotate(qkv[:, :, 1]), qkv[:, :, 2]
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        x = x + gate * linear(mixed.transpose(1, 2).reshape(1, LENGTH, HIDDEN), at + "attn_out")
        wide = F.gelu(linear(modulate(norm(x, at + "norm2"), feed_shift, feed_scale), at + "mlp.0"), approximate="tanh")
        x = x + feed_gate * linear(wide, at + "mlp.2")
    shift, scale = linear(condition, "output_layer.adaLN_modulation")[:, None].chunk(2, dim=2)
    logits = linear(modulate(norm(x, "output_layer.norm_final"), shift, scale), "output_layer.linear")
    config = dict(model_type="mdlm", hidden_dim=HIDDEN, n_heads=HEADS, n_blocks=LAYERS, cond_dim=condition_width,
                  vocab_size=VOCABULARY, model_length=64, time_conditioning=False)
    return config, {f"backbone.{key}": value for key, value in weights.items()}, tokens, logits


main()
