"""A Stable Diffusion pipeline small enough for a test: every class is the real one, the weights are random.

Latents (k, 4, 8, 8), pictures 16x16, prompts of up to 16 tokens (letters: the tokenizer has no merges). Building takes a fraction of a second.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 16
WIDTH = 32


def byte_symbols() -> list[str]:
    """The 256 printable characters that byte-level BPE writes bytes as (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that takes any text, one token per byte."""
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=TOKENS)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One layer of 32."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tiny_unet() -> UNet2DConditionModel:
    """(32, 64) channels on 8x8 latents, attention on both levels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def tiny_vae() -> AutoencoderKL:
    """8x8 latents <-> 16x16 pictures."""
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def tiny_pipeline(*, seed: int = 0, **scheduler: Any) -> StableDiffusionPipeline:
    """A whole StableDiffusionPipeline with random weights, the same for the same seed; `scheduler` overrides the DDIM settings.

    `tiny_pipeline().save_pretrained(folder)` gives the stock folder format.
    """
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(),
            scheduler=DDIMScheduler(**(settings | scheduler)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for model in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        model.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
