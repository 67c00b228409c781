"""Pipelines small enough for a test, one for each model family: every class is the real one, the weights are random.

Pictures are twice as wide as latents, which are (k, 4, 8, 8) unless a test wants others; prompts of up to 16 tokens (letters: the tokenizer has
no merges). Building takes a fraction of a second.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

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


def clip_config(tokenizer: CLIPTokenizer, layers: int = 1, width: int = WIDTH) -> CLIPTextConfig:
    """Layers of 32, unless another width is asked for."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One layer of 32."""
    return CLIPTextModel(clip_config(tokenizer))


def tiny_t5() -> tuple[T5TokenizerFast, T5EncoderModel]:
    """A T5 tokenizer of single letters, and one layer of twice the width of the CLIPs."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=2 * WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=4)
    return tokenizer, T5EncoderModel(config)


def tiny_unet(**more: Any) -> UNet2DConditionModel:
    """(32, 64) channels on 8x8 latents, attention on both levels; `more` overrides and adds."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(config | more))


def tiny_vae(**more: Any) -> AutoencoderKL:
    """8x8 latents <-> 16x16 pictures; `more` adds."""
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **more,
    )


DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_lora(denoiser: Any, config: LoraConfig) -> dict[str, torch.Tensor]:
    """Adds a LoRA that is plainly at work; its weights by peft's keys."""
    denoiser.add_adapter(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in denoiser.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return {key: weight.detach() for key, weight in get_peft_model_state_dict(denoiser).items()}


def finished(pipeline: Any) -> Any:
    """The pipeline ready to draw: nothing trains, no bars."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_pipeline(*, seed: int = 0, **scheduler: Any) -> StableDiffusionPipeline:
    """A whole StableDiffusionPipeline with random weights, the same for the same seed; `scheduler` overrides the DDIM settings.

    `tiny_pipeline().save_pretrained(folder)` gives the stock folder format.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(),
            scheduler=DDIMScheduler(**(DIFFUSION | scheduler)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return finished(pipeline)


def tiny_lcm() -> LatentConsistencyModelPipeline:
    """`tiny_pipeline` as a latent consistency model, whose UNet is told of guidance."""
    made = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = tiny_unet(time_cond_proj_dim=16)
    parts = {name: getattr(made, name) for name in ("vae", "text_encoder", "tokenizer")}
    scheduler = LCMScheduler(**{name: value for name, value in DIFFUSION.items() if name != "timestep_spacing"})
    pipeline = LatentConsistencyModelPipeline(
        unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )
    return finished(pipeline)


def tiny_sdxl(*, seed: int = 0, second: int = WIDTH, **scheduler: Any) -> StableDiffusionXLPipeline:
    """A whole StableDiffusionXLPipeline with a DDIM scheduler, its second text encoder so wide; otherwise as `tiny_pipeline`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        unet = tiny_unet(
            cross_attention_dim=WIDTH + second,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + second,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        )
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(clip_config(tokenizer, layers=2)),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, layers=2, width=second)),
            tokenizer=tokenizer,
            tokenizer_2=tiny_tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(**(DIFFUSION | scheduler)),
            add_watermarker=False,
        )
    return finished(pipeline)


def tiny_sd3(*, seed: int = 0, t5: bool = True, second: int = WIDTH, **scheduler: Any) -> StableDiffusion3Pipeline:
    """A whole StableDiffusion3Pipeline, with or without T5, its second CLIP so wide; `scheduler` overrides the flow matching settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        tokenizer_3, text_encoder_3 = tiny_t5() if t5 else (None, None)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=WIDTH + second,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
            vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer, layers=2)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, layers=2, width=second)),
            tokenizer_2=tiny_tokenizer(),
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
    return finished(pipeline)


def tiny_flux(
    *, seed: int = 0, guidance_embeds: bool = True, single_layers: int = 1, heads: int = 4, head: int = 8, **scheduler: Any
) -> FluxPipeline:
    """A whole FluxPipeline, as dev is (guidance embedded, dynamic shifting) or, without guidance, as schnell. Its own size is 256x256."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        tokenizer_2, text_encoder_2 = tiny_t5()
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=single_layers,
            attention_head_dim=head,
            num_attention_heads=heads,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(head // 4, head // 4, head // 2),
        )
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                **({"shift": 3.0 if guidance_embeds else 1.0, "use_dynamic_shifting": guidance_embeds} | scheduler)
            ),
            vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=CLIPTextModel(clip_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
    return finished(pipeline)
