"""Whether the picture shows what the prompt states, by asking: the product of the probabilities of "yes" to a question for each noun phrase.

In the manner of T2I-CompBench's BLIP-VQA (Huang et al., arXiv 2307.06350): the question is the phrase with a question mark, and the
probability is P("yes") / (P("yes") + P("no")) of the answer's first word. Two differences: phrases are found without a parser (questions.py),
and the weights are BLIP's `blip-vqa-base` (BSD-3-Clause) as transformers has them. Missing for a prompt in which there is nothing to ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.base import Scores
from rewards.questions import questions
from rewards.weights import BATCH, Source

MODEL = Source("Salesforce/blip-vqa-base", "787b3d35d57e49572baabd22884b3d5a05acf072")
LONGEST = 35  # tokens of a question, as BLIP was trained


@dataclass(frozen=True)
class VQA:
    """The product, 0..1. On `device`, in half precision on a GPU: 0.8 GB, on a CPU 1.5 GB."""

    model: Source = MODEL
    device: str = "cpu"
    name: str = "vqa"
    scale: float = 0.2

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        values = np.full(len(images), np.nan)
        asked: dict[int, list[tuple[int, list[int]]]] = {}  # number of tokens -> [(picture, tokens)]
        for i, prompt in enumerate(prompts):
            for question in questions(prompt):
                values[i] = 1.0
                tokens = self._loaded[2](question, truncation=True, max_length=LONGEST)["input_ids"]
                asked.setdefault(len(tokens), []).append((i, tokens))
        for alike in asked.values():  # of one length: transformers' BLIP does not mask what a question is filled up with
            for start in range(0, len(alike), BATCH):
                which, tokens = zip(*alike[start : start + BATCH], strict=True)
                np.multiply.at(values, list(which), self._yes([images[i] for i in which], list(tokens)))
        return Scores(values)

    def _yes(self, images: Sequence[Image.Image], tokens: list[list[int]]) -> NDArray[np.float64]:
        """(b,) probabilities of yes, against no, to questions of one length."""
        import torch

        model, pictures, _, answers = self._loaded
        start = model.config.text_config.bos_token_id  # [DEC]; BLIP's next token, [ENC], stands at the head of a question
        with torch.inference_mode():
            different = list({id(image): image for image in images}.values())
            pixels = pictures(images=[image.convert("RGB") for image in different], return_tensors="pt")["pixel_values"]
            seen = model.vision_model(pixel_values=pixels.to(self.device, model.dtype)).last_hidden_state
            seen = seen[[next(i for i, other in enumerate(different) if other is image) for image in images]]  # (b, patches, d)
            ids = torch.tensor([[start + 1, *question[1:]] for question in tokens], device=self.device)
            read = model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
            begun = torch.full((len(tokens), 1), start, device=self.device)
            said = model.text_decoder(input_ids=begun, encoder_hidden_states=read).logits[:, 0]  # (b, vocabulary)
            of_yes = said[:, answers].float().softmax(-1)[:, 0]
        return np.asarray(of_yes.cpu(), dtype=np.float64)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, list[int]]:
        """(model, image processor, tokenizer, the tokens of "yes" and "no")."""
        from transformers import BertTokenizer, BlipForQuestionAnswering, BlipImageProcessor

        tokenizer = self.model.pretrained(BertTokenizer)
        model = self.model.model_in_half(BlipForQuestionAnswering, self.device)
        return model, self.model.pretrained(BlipImageProcessor), tokenizer, tokenizer.convert_tokens_to_ids(["yes", "no"])
