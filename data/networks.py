"""The embedded networks as they start, and their losses. Training them is in train_base.py."""

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.scenes import caption, sample_scene

TEXT_LENGTH, TEXT_WIDTH = 32, 192
LATENT_CHANNELS, LATENT_NOISE = 12, 0.1


def new_vae() -> AutoencoderKL:
    """The autoencoder, started as a nearly linear code: orthogonal trunk, silent residual branches. It learns several times faster so."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                torch.nn.init.zeros_(module.weight)
    return model


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(model: AutoencoderKL, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction under a little latent noise: absolute and squared error, that of the edges for crisp shapes, that of the colours."""
    latents = model.encode(x).latent_dist.mean
    latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(x.device)
    y = model.decode(latents).sample.float()
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    error = y - x
    # Red against green is rare and faint in the mean error, and is learned last or never unless it is asked for.
    opponent = torch.stack([error[:, 0] - error[:, 1], error[:, 1] - error[:, 2]])
    loss: torch.Tensor = error.abs().mean() + 3 * error.square().mean() + 3 * opponent.square().mean() + edges + 1e-4 * latents.square().mean()
    return loss


def new_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer whose merges come from this world's captions: any text has tokens, its words are short."""
    from tokenizers.trainers import BpeTrainer

    rng = np.random.default_rng(0)
    corpus = [caption(sample_scene(rng), rng)[0] for _ in range(20_000)]
    blank = CLIPTokenizer()
    alphabet = sorted(set(bytes_to_letters().values()))
    trainer = BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    blank.backend_tokenizer.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(blank.backend_tokenizer.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def bytes_to_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte: itself where printable, else one from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    return letters | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)}


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> torch.Tensor:
    """(n, TEXT_LENGTH) token ids."""
    made = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    ids: torch.Tensor = made.input_ids.to(device)
    return ids


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(128, 256),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


class Denoiser(torch.nn.Module):
    """Text encoder and UNet, trained together on the v-prediction error (Salimans & Ho, 2202.00512)."""

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text, self.unet = text, unet

    def loss(self, x0: torch.Tensor, tokens: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) x0 at random times; x0 (n, LATENT_CHANNELS, 8, 8), tokens (n, L)."""
        n = len(x0)
        # Stratified times: every batch covers the whole chain, which quietens the gradient.
        t = ((torch.rand(1, generator=generator) + torch.arange(n)) / n % 1.0 * 1000).long().clamp(0, 999)[torch.randperm(n, generator=generator)]
        a = alphas[t].to(x0.device)[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        words = self.text(tokens).last_hidden_state
        v = self.unet((a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last), t.to(x0.device), words).sample
        error = (v.float() - a.sqrt() * noise + (1 - a).sqrt() * x0).square().mean(1, keepdim=True)
        weight = cell_weights(x0, a)
        loss: torch.Tensor = (weight * error).sum() / weight.sum()
        return loss


def cell_weights(x0: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """(n, 1, 8, 8) weights: once the noise lets a thing's place be seen, its few cells count more than the empty ones.

    Without it thin shapes and patterns, which are a small part of the error, are learned last.
    """
    empty = x0.flatten(2).median(dim=2).values[:, :, None, None]
    return 1 + 2 * a.square() * (x0 - empty).square().mean(1, keepdim=True).clamp(max=3)


def new_denoiser(seed: int = 0) -> tuple[Denoiser, CLIPTokenizer]:
    tokenizer = new_tokenizer()
    torch.manual_seed(seed)
    return Denoiser(new_text_encoder(tokenizer), new_unet()), tokenizer


def clip_config(tokenizer: CLIPTokenizer) -> dict[str, object]:
    """open_clip's configuration; the tokenizer is the one beside it."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            # Convolutions (open_clip's ModifiedResNet): textures and thin shapes are lost on patches of a vision transformer this small.
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "head_width": 64},
            "text_cfg": {
                "context_length": TEXT_LENGTH,
                "vocab_size": len(tokenizer),
                "width": 192,
                "heads": 6,
                "layers": 3,
                "hf_tokenizer_name": "clip",
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"},
    }


def new_clip(tokenizer: CLIPTokenizer) -> Any:
    from open_clip import CLIP as OpenClip

    torch.manual_seed(0)
    config = clip_config(tokenizer)["model_cfg"]
    assert isinstance(config, dict)
    text = dict(config["text_cfg"])
    return OpenClip(embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=text)


def clip_loss(model: Any, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Contrastive loss over the batch, and over each picture's own captions with one attribute changed.

    x (n, 3, 64, 64); tokens (n, 1 + m, L): the right caption first.
    """
    n, m = tokens.shape[:2]
    images = F.normalize(model.encode_image(x).float(), dim=-1)
    texts = F.normalize(model.encode_text(tokens.flatten(0, 1)).float(), dim=-1).view(n, m, -1)
    scale = model.logit_scale.exp().clamp(max=100)
    among = scale * images @ texts[:, 0].T
    own = scale * torch.einsum("nd,nmd->nm", images, texts)
    target = torch.arange(n, device=x.device)
    return 0.5 * F.cross_entropy(among, target) + 0.5 * F.cross_entropy(among.T, target) + F.cross_entropy(own, torch.zeros_like(target))
