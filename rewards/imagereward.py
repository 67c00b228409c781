"""ImageReward (Xu et al., arXiv 2304.05977): how people rank the pictures of one prompt, about -2 to 2, 0 = the average of its training set.

BLIP's image encoder, its text encoder looking at the picture, and a linear head on the first token:

    r = (head(text_encoder(prompt, image_encoder(picture))[:, 0]) - 0.1672) / 1.0333

Built of transformers' own BLIP modules, with the names of the published checkpoint translated as transformers' conversion of BLIP does, and
every size read from its tensors. The weights (Apache-2.0) are published as a pickle: it is read once and kept as safetensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from rewards.base import RewardError, Scores
from rewards.weights import BATCH, Pickled, Source, precision

if TYPE_CHECKING:
    import torch

WEIGHTS = Pickled(Source("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72"), "ImageReward.pt")
TOKENIZER = Source("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
MEAN, STD = 0.16717362830052426, 1.0333394966054072
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 35  # tokens of a prompt
HEAD_WIDTH = 64  # of an attention head, in all sizes of ViT and BERT that BLIP is made of
# BLIP's names of the image encoder -> transformers'.
RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
}
RENAMED_IN_BLOCK = {"attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection", "norm1": "layer_norm1", "norm2": "layer_norm2"}


@dataclass(frozen=True)
class ImageReward:
    """The normalised reward of picture and prompt. On `device`, in half precision on a GPU: 0.9 GB, on a CPU 1.8 GB."""

    weights: Pickled = WEIGHTS
    tokenizer: Source = TOKENIZER
    device: str = "cpu"
    name: str = "imagereward"
    scale: float = 0.6

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        import torch

        vision, text, head, preprocess, tokenizer = self._loaded
        rewards = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                pixels = torch.stack([preprocess(image.convert("RGB")) for image in images[start : start + BATCH]])  # (b, 3, H, W)
                seen = vision(pixel_values=pixels.to(self.device, vision.dtype)).last_hidden_state  # (b, patches, d)
                texts = list(prompts[start : start + BATCH])
                tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt").to(self.device)
                read = text(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen).last_hidden_state
                rewards.append(head(read[:, 0].float()))
        return Scores((torch.cat(rewards).double().cpu().numpy() - MEAN) / STD)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, Any, Any]:
        """(image encoder, text encoder, head, picture -> (3, H, W), tokenizer)."""
        from torchvision import transforms
        from transformers import BertTokenizer

        from rewards.head import LinearHead

        weights = self.weights.tensors()
        vision, text = _vision(_part(weights, "blip.visual_encoder.")), _text(_part(weights, "blip.text_encoder."))
        size = vision.config.image_size
        preprocess = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(PIXEL_MEAN, PIXEL_STD),
            ]
        )
        vision, text = (model.to(self.device, precision(self.device)).eval().requires_grad_(False) for model in (vision, text))
        return vision, text, LinearHead(_part(weights, "mlp."), self.device), preprocess, self.tokenizer.pretrained(BertTokenizer)


def _part(weights: "Mapping[str, torch.Tensor]", prefix: str) -> "dict[str, torch.Tensor]":
    """The tensors whose names begin so, without that."""
    part = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not part:
        raise RewardError(f"This is not ImageReward's checkpoint: it has nothing called {prefix}*.")
    return part


def renamed(name: str) -> str:
    """transformers' name of a tensor of BLIP's image encoder: blocks.0.attn.proj.weight -> encoder.layers.0.self_attn.projection.weight."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            name = new + name.removeprefix(old)
            break
    for old, new in RENAMED_IN_BLOCK.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _layers(weights: "Mapping[str, torch.Tensor]", prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _vision(weights: "Mapping[str, torch.Tensor]") -> Any:
    """BLIP's ViT, of the size that its tensors have; its layer norms have an epsilon of 1e-6."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(weights, "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    model = BlipVisionModel(config)
    model.load_state_dict({renamed(name): tensor for name, tensor in weights.items()})
    return model


def _text(weights: "Mapping[str, torch.Tensor]") -> Any:
    """BLIP's BERT with a look at the picture in each layer, of the size that its tensors have."""
    from transformers import BlipTextConfig, BlipTextModel

    words, width = weights["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=weights["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(weights, "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
        bos_token_id=words - 2,
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name != "embeddings.position_ids"})
    return model
