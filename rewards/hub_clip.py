"""Image and text features of a CLIP as transformers has it: what `aesthetic` and `pickscore` read. open_clip's are in features.py."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from rewards.weights import BATCH, Source


class HubClip:
    """A CLIPModel with its processor; features (n, d) of length 1, float32.

    model: a folder or Hub name with safetensors;  processor: with the image processor and the tokenizer
    """

    def __init__(self, model: Source, processor: Source, device: str) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self._model: Any = model.model_in_half(CLIPModel, device)
        self._pictures: Any = processor.pretrained(CLIPImageProcessor)
        self._tokenizer: Any = processor.pretrained(CLIPTokenizer)
        self._device = device

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied by."""
        return float(self._model.logit_scale.float().exp())

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, d) of n pictures."""
        batches = [[image.convert("RGB") for image in images[start : start + BATCH]] for start in range(0, len(images), BATCH)]
        pixels = [self._pictures(images=batch, return_tensors="pt")["pixel_values"].to(self._device, self._model.dtype) for batch in batches]
        return torch.cat([_unit(self._model.get_image_features(pixel_values=batch)) for batch in pixels])

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(n, d) of n prompts, cut to the length that the model reads; equal prompts are read once."""
        different = list(dict.fromkeys(prompts))
        longest = self._model.config.text_config.max_position_embeddings
        batches = [different[start : start + BATCH] for start in range(0, len(different), BATCH)]
        tokens = [
            self._tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(self._device) for batch in batches
        ]
        read = torch.cat([_unit(self._model.get_text_features(input_ids=t["input_ids"], attention_mask=t["attention_mask"])) for t in tokens])
        return read[[different.index(prompt) for prompt in prompts]]


def _unit(output: Any) -> torch.Tensor:
    """(b, d) of length 1; transformers 5 wraps the features."""
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    return functional.normalize(features.float(), dim=-1)
