"""Train SEED: causal queries that mean what the text says, then a codebook that keeps what they mean.

Source: arXiv 2310.01218, section 3, and AILab-CVC/SEED@93b3cf4.

    stage 1   the last query's embedding and the text of the picture find each other in the batch (contrast)
    stage 2   tower and queries stay as they are; codebook, decoder branches and head learn to rebuild the queries' embeddings and
              to give the picture's embedding in a frozen network, with the original's weights 5, 2 and 0.5

Both stages are one run, whose steps from `codebook_start` on are the second stage; each has its own schedule. The original begins
with a pretrained vision tower, Q-Former and BERT. Where these are not at hand (the nano model), the tower learns in stage 1 as
well, also from the patch features of a frozen network (`teacher_weight`), and the text is a bag of words. Pictures with the same
text count as each other's match.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.data.captions import caption, word_numbers
from recipes.modules.alignment import Alignment
from recipes.modules.base import TokenizerRecipe, training_attention, warmup_cosine
from recipes.modules.counting import CountsCodes
from zoo.layers.features import BACKBONES, load_features

__all__ = ["SeedRecipe", "WordBag", "matching_loss", "recall"]

_TEMPERATURE = 0.07  # at the start, as published
_SMOOTHING = 0.1


class WordBag(nn.Module):
    """Text to a unit vector `(b, width)`: the mean of its words' vectors, and two linear layers.

    Args:
        width: of the result.
        buckets: vectors for words; a word has the one that its hash names.
    """

    def __init__(self, width: int, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.words = nn.EmbeddingBag(buckets, width, mode="mean")
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, texts: list[str]) -> Tensor:
        numbers = [word_numbers(text, self.buckets) for text in texts]
        starts = torch.tensor([0, *(len(n) for n in numbers[:-1])]).cumsum(0)
        device = self.words.weight.device
        flat = torch.tensor([n for own in numbers for n in own], device=device)
        return F.normalize(self.project(self.words(flat, starts.to(device))), dim=-1)


def matching_loss(images: Tensor, texts: Tensor, own: Tensor, others: Tensor, temperature: Tensor) -> Tensor:
    """Cross-entropy of finding the texts of pictures among all, smoothed by 0.1.

    Args:
        images: unit vectors `(b, c)`.
        texts: unit vectors of all candidates `(n, c)`.
        own: number of each picture's text `(b,)`; equal numbers are equal texts.
        others: the same of the candidates `(n,)`.
        temperature: `()`.
    """
    same = (own[:, None] == others[None]).float()
    target = (1 - _SMOOTHING) * same / same.sum(1, keepdim=True) + _SMOOTHING / len(others)
    return -(target * (images @ texts.t() / temperature).log_softmax(-1)).sum(1).mean()


def recall(images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """Share of the pictures whose nearest text of the batch is (equal to) their own, `()`."""
    return (own[(images @ texts.t()).argmax(1)] == own).float().mean()


class SeedRecipe(CountsCodes, TokenizerRecipe):
    """Train a SEED tokenizer on batches with `images` and `index`; texts are read from the datamodule's corpus.

    With several processes: `--trainer.strategy ddp_find_unused_parameters_true`.

    Args:
        tokenizer: catalog name.
        codebook_start: step at which the second stage begins; 0 where `init` brings a finished tower and Q-Former.
        target: network whose embedding of the picture `decode` shall give: "efficientnet_lite0", pooled features scaled to a mean
            square of 1, or "timm:NAME" with a projection head, as it comes.
        teacher_weight: in stage 1, of the cosine between the tower's patches and EfficientNet-Lite0's; 0 leaves it out.
        text_width: of the space in which pictures and texts meet.
        words: buckets of `WordBag`.
        revive_below: codes whose running count falls below are put at vectors of the batch; 0 never, as in the original.
        options: of `TokenizerRecipe`.

    Raises:
        ValueError: an unknown target.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        codebook_start: int = 0,
        target: str = "efficientnet_lite0",
        teacher_weight: float = 0.0,
        text_width: int = 256,
        words: int = 4096,
        revive_below: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if target not in BACKBONES and not target.startswith("timm:"):
            raise ValueError(f"SeedRecipe: target={target!r}. Allowed: {', '.join(BACKBONES)}, or timm:NAME.")
        config = self.tokenizer.config
        self.codebook_start, self.target, self.teacher_weight = codebook_start, target, teacher_weight
        self.tokenizer.quantizer.revive_below = revive_below
        self.text = self.picture = self.alignment = None
        if codebook_start:
            self.text = WordBag(text_width, words)
            self.picture = nn.Linear(config.width, text_width)
            self.log_temperature = nn.Parameter(torch.tensor(_TEMPERATURE).log())
            if teacher_weight:
                self.alignment = Alignment(width=config.vision_width, network="efficientnet_lite0", channels=112)
        self._frozen: list[nn.Module] = []

    def matching(self, step: int) -> bool:
        """Whether a step belongs to the first stage."""
        return step < self.codebook_start

    def rate_factor(self, step: int) -> float:
        """Warm-up and cosine of the stage that the step belongs to."""
        total = int(self.trainer.estimated_stepping_batches)
        start, end = (0, min(total, self.codebook_start)) if self.matching(step) else (self.codebook_start, total)
        return warmup_cosine(step - start, warmup=self.warmup_steps, total=end - start, floor=self.final_rate)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch.images
        with training_attention(self.device):
            if self.matching(self.global_step):
                loss, values = self.contrast(x, self.texts(batch, "train"))
            else:
                losses = self.tokenizer.codebook_losses(x, self.target_of(x))
                loss, values = losses.total, dict(zip(losses._fields[1:], losses[1:], strict=True))
        self.log_scores("train", {"loss": loss, **values}, batch_size=len(x))
        return loss

    # -- the first stage -------------------------------------------------------------------------------------------------------

    def texts(self, batch: Any, stage: str) -> list[str]:
        """Texts of a batch, from the records of its pictures."""
        data = self.trainer.datamodule
        corpus = (data.train_set if stage == "train" else data.val_set).corpus
        return [caption(corpus.record(int(i))) for i in batch.index]

    def picture_vectors(self, embeddings: Tensor) -> Tensor:
        """Unit vectors `(b, text_width)` of causal embeddings `(b, n, width)`: those of the last query."""
        return F.normalize(self.picture(embeddings[:, -1]), dim=-1)

    def contrast(self, x: Tensor, texts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Symmetric matching loss over the pictures of all processes, and the tower's lesson from its teacher."""
        tok, config = self.tokenizer, self.tokenizer.config
        features = tok.vision_features(x)
        images, words = self.picture_vectors(tok.causal_embeddings(features)).float(), self.text(texts).float()
        own = torch.tensor([word_numbers(text.replace(" ", "_"), 2**40)[0] for text in texts], device=self.device)
        gathered = [self.all_gather(part, sync_grads=True) for part in (images, words)]
        all_images, all_words = (part.flatten(0, 1) if part.ndim == 3 else part for part in gathered)
        everybody = self.all_gather(own).flatten()
        temperature = self.log_temperature.exp()
        forward = matching_loss(images, all_words, own, everybody, temperature)
        backward = matching_loss(words, all_images, own, everybody, temperature)
        values = {"contrast": (forward + backward) / 2, "temperature": temperature, "recall": recall(images, words, own)}
        loss = values["contrast"]
        if self.alignment is not None:
            side = config.image_size // config.patch
            values["alignment"] = self.alignment(features[:, 1:].unflatten(1, (side, side)), x)
            loss = loss + self.teacher_weight * values["alignment"]
        return loss, {name: value.detach() for name, value in values.items()}

    # -- the second stage ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def target_of(self, x: Tensor) -> Tensor:
        """Embeddings `(b, features)` of pictures in the frozen network."""
        if not self._frozen:
            self._frozen.append(load_features(self.target) if self.target in BACKBONES else _TimmEmbedding(self.target))
        network = self._frozen[0].to(self.device)
        if self.target in BACKBONES:
            pooled = network(x)[1].float()
            return F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5
        return network(x).float()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Recall of the text from the queries and from their codes, cosine of the rebuilt embeddings and of the target."""
        x, tok = batch.images, self.tokenizer
        embeddings = tok.causal_embeddings(tok.vision_features(x))
        codes = tok.quantizer.encode(tok.to_code(embeddings))
        self.count_codes(codes)
        vectors = tok.quantizer.decode(codes)
        rebuilt = tok.rebuild_embeddings(vectors)
        values = {
            "cosine": F.cosine_similarity(rebuilt.float(), embeddings.float(), dim=-1).mean(),
            "target_cosine": F.cosine_similarity(tok.decode_vectors(vectors).float(), self.target_of(x), dim=-1).mean(),
        }
        if self.text is not None:
            texts = self.texts(batch, "val")
            words, own = self.text(texts), torch.tensor([texts.index(text) for text in texts], device=self.device)
            values["recall"] = recall(self.picture_vectors(embeddings), words, own)
            values["recall_of_codes"] = recall(self.picture_vectors(rebuilt), words, own)
            values["recall_of_chance"] = (own[:, None] == own[None]).float().mean()
        self.log_scores("val", values, batch_size=len(x))


class _TimmEmbedding(nn.Module):
    """What a timm network with a projection head says of pictures; its weights come from the Hub at the user's site."""

    def __init__(self, target: str) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model(target.removeprefix("timm:"), pretrained=True).eval().requires_grad_(False)
        config = self.network.pretrained_cfg
        self.side = config["input_size"][-1]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give `(b, features)` of pictures in [-1, 1], resized to the network's own size."""
        x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
        return self.network(((x + 1) / 2 - self.mean) / self.std)
