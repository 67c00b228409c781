"""The tiny pipelines' weights as one checkpoint has them that was never in diffusers' format: named, and fused, as the models were published."""

import re
from typing import Any

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

Weights = dict[str, torch.Tensor]

# How Stability's code names the layers of these very networks, first match first; (3, 1) at one block are its residual layer and its attention.
UNET_NAMES = (
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^up_blocks\.0\.upsamplers\.0\.conv", "output_blocks.1.1.conv"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^down_blocks\.(\d)\.(resnets|attentions)\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.{int(m[2] == 'attentions')}"),
    (r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}"),
    (r"\.norm1\.(?=\w+$)(?<!transformer_blocks\.\d\.norm1\.)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.(?=\w+$)(?<!transformer_blocks\.\d\.norm2\.)", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
VAE_NAMES = (
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{1 + int(m[1])}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm|conv_norm_out", lambda m: "norm" if m[0] == "group_norm" else "norm_out"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
    (r"conv_shortcut", "nin_shortcut"),
)
# SD3's and SD3.5's transformer.
MMDIT_NAMES = (
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_(\d)", lambda m: f"t_embedder.mlp.{2 * int(m[1]) - 2}"),
    (r"^time_text_embed\.text_embedder\.linear_(\d)", lambda m: f"y_embedder.mlp.{2 * int(m[1]) - 2}"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"attn\.to_out\.0", "x_block.attn.proj"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"attn\.norm_added_([qk])", r"context_block.attn.ln_\1"),
    (r"attn\.norm_([qk])", r"x_block.attn.ln_\1"),
    (r"attn\.to_([qkv])", r"x_block.attn.\1"),
    (r"attn\.add_([qkv])_proj", r"context_block.attn.\1"),
)
# FLUX.1's; what is called context is the words' side.
FLUX_NAMES = (
    (r"^time_text_embed\.timestep_embedder\.linear_(\d)", lambda m: f"time_in.{('in', 'out')[int(m[1]) - 1]}_layer"),
    (r"^time_text_embed\.text_embedder\.linear_(\d)", lambda m: f"vector_in.{('in', 'out')[int(m[1]) - 1]}_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_(\d)", lambda m: f"guidance_in.{('in', 'out')[int(m[1]) - 1]}_layer"),
    (r"^context_embedder", "txt_in"),
    (r"^x_embedder", "img_in"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^single_transformer_blocks\.(\d)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"^single_transformer_blocks\.(\d)\.proj_out", r"single_blocks.\1.linear2"),
    (r"^single_transformer_blocks\.(\d)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"^transformer_blocks", "double_blocks"),
    (r"norm1\.linear", "img_mod.lin"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"ff_context\.net\.2", "txt_mlp.2"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"(?<=^double_blocks\.\d\.)attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"(?<=^double_blocks\.\d\.)attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"(?<=^double_blocks\.\d\.)attn\.to_([qkv])", r"img_attn.\1"),
    (r"(?<=^single_blocks\.\d\.)attn\.to_([qkv])", r"attn.\1"),
    (r"attn\.add_([qkv])_proj", r"txt_attn.\1"),
)
OPEN_CLIP_NAMES = (
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"self_attn\.([qkv])_proj", r"attn.\1"),
)


def single_file(pipeline: Any) -> Weights:
    """The weights of a whole tiny pipeline in one."""
    makers = {StableDiffusionPipeline: _sd, StableDiffusionXLPipeline: _sdxl, StableDiffusion3Pipeline: _sd3, FluxPipeline: _flux}
    return makers[type(pipeline)](pipeline)


def _sd(pipeline: Any) -> Weights:
    texts = named("cond_stage_model.transformer.text_model.", pipeline.text_encoder, ((r"^text_model\.", ""),))
    return named("model.diffusion_model.", pipeline.unet, UNET_NAMES) | named("first_stage_model.", pipeline.vae, VAE_NAMES) | texts


def _sdxl(pipeline: Any) -> Weights:
    texts = named("conditioner.embedders.0.transformer.text_model.", pipeline.text_encoder, ((r"^text_model\.", ""),))
    second = fused(named("", pipeline.text_encoder_2, OPEN_CLIP_NAMES), r".in_proj_\1")
    second["text_projection"] = second.pop("text_projection.weight").T.contiguous()
    texts |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return named("model.diffusion_model.", pipeline.unet, UNET_NAMES) | named("first_stage_model.", pipeline.vae, VAE_NAMES) | texts


def _sd3(pipeline: Any) -> Weights:
    transformer = fused(named("", pipeline.transformer, MMDIT_NAMES), r".qkv.\1")
    last = max(int(key.split(".")[1]) for key in transformer if key.startswith("joint_blocks."))
    for key in transformer:
        if key.startswith((f"joint_blocks.{last}.context_block.adaLN", "final_layer.adaLN")):  # shift before scale
            transformer[key] = torch.cat(transformer[key].chunk(2)[::-1])
    return whole(pipeline, transformer, clip_l=pipeline.text_encoder, clip_g=pipeline.text_encoder_2, t5xxl=pipeline.text_encoder_3)


def _flux(pipeline: Any) -> Weights:
    transformer = fused(named("", pipeline.transformer, FLUX_NAMES), r".qkv.\1")
    for key in list(transformer):
        if key.startswith("final_layer.adaLN"):  # shift before scale
            transformer[key] = torch.cat(transformer[key].chunk(2)[::-1])
        if match := re.match(r"(single_blocks\.\d)\.attn\.qkv\.(\w+)", key):
            rows = transformer.pop(key), transformer.pop(f"{match[1]}.proj_mlp.{match[2]}")
            transformer[f"{match[1]}.linear1.{match[2]}"] = torch.cat(rows)
    return whole(pipeline, transformer, clip_l=pipeline.text_encoder, t5xxl=pipeline.text_encoder_2)


def whole(pipeline: Any, transformer: Weights, **encoders: Any) -> Weights:
    """A transformer with the VAE and these text encoders, as one file has them."""
    texts: Weights = {}
    for name, part in encoders.items():
        names = () if name == "t5xxl" else ((r"^(?!text_model\.|text_projection\.)", "text_model."),)  # not all of transformers' classes say it
        texts |= named(f"text_encoders.{name}.transformer.", part, names)
    body = {f"model.diffusion_model.{key}": value for key, value in transformer.items()}
    return body | named("first_stage_model.", pipeline.vae, VAE_NAMES) | texts


def named(prefix: str, part: Any, names: Any) -> Weights:
    """A part's weights by these names."""
    renamed = {}
    for key, value in part.state_dict().items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        renamed[prefix + key] = value.clone(memory_format=torch.contiguous_format)
    return renamed


def fused(weights: Weights, suffix: str) -> Weights:
    """q, k and v of each attention as one, one below the other: attn.q.weight and so on -> attn + suffix."""
    found = {}
    for key, value in weights.items():
        if match := re.search(r"(?<=attn)\.q\.(weight|bias)$", key):
            rows = [weights[f"{key[: match.start()]}.{name}.{match[1]}"] for name in "qkv"]
            found[key[: match.start()] + match.expand(suffix)] = torch.cat(rows)
        elif not re.search(r"attn\.[kv]\.(weight|bias)$", key):
            found[key] = value
    return found
