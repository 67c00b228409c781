"""Pipelines with random weights in the sizes that their authors publish, to measure what they cost: no download, no text encoders, no pictures.

Every number is of the model's own config.json; what is not named has the class's default, as there. Weights are drawn in the dtype in which they
are used and never exist twice.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

PUBLISHED = ("sd15", "sdxl", "sd35-medium", "flux-dev")
BLOCKS = 4
DIFFUSION: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}


def random_pipeline(name: str, *, half: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """(pipeline, the words of one prompt), in the family's half precision or float32. `name`: one of PUBLISHED."""
    build = {"sd15": _sd15, "sdxl": _sdxl, "sd35-medium": _sd35_medium, "flux-dev": _flux_dev}[name]
    dtype = torch.float32 if not half else torch.float16 if name in ("sd15", "sdxl") else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        return build()
    finally:
        torch.set_default_dtype(before)


def vae(latent_channels: int, **more: Any) -> AutoencoderKL:
    """(128, 256, 512, 512) channels, eight pixels to a latent: the autoencoder of all four."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * BLOCKS,
        up_block_types=("UpDecoderBlock2D",) * BLOCKS,
        layers_per_block=2,
        latent_channels=latent_channels,
        **more,
    )


def _sd15() -> tuple[Any, dict[str, torch.Tensor]]:
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = DDIMScheduler(set_alpha_to_one=False, **DIFFUSION)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(vae=vae(4), unet=unet, scheduler=scheduler, requires_safety_checker=False, **nothing)
    return pipeline, {"encoder_hidden_states": torch.randn(1, 77, 768)}


def _sdxl() -> tuple[Any, dict[str, torch.Tensor]]:
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    scheduler = DDIMScheduler(set_alpha_to_one=False, **DIFFUSION)
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = StableDiffusionXLPipeline(
        vae=vae(4, scaling_factor=0.13025, force_upcast=True), unet=unet, scheduler=scheduler, add_watermarker=False, **nothing
    )
    sides = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]], dtype=torch.get_default_dtype())
    return pipeline, {"encoder_hidden_states": torch.randn(1, 77, 2048), "text_embeds": torch.randn(1, 1280), "time_ids": sides}


def _sd35_medium() -> tuple[Any, dict[str, torch.Tensor]]:
    transformer = SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")),
    )
    return pipeline, {"encoder_hidden_states": torch.randn(1, 333, 4096), "pooled_projections": torch.randn(1, 2048)}


def _flux_dev() -> tuple[Any, dict[str, torch.Tensor]]:
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    return pipeline, {"encoder_hidden_states": torch.randn(1, 512, 4096), "pooled_projections": torch.randn(1, 768)}
