"""Train the mini OWLv2: boxes of characters, and whether a text query names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from torchvision.ops import generalized_box_iou_loss

from mudi_core.bases import embedded as family
from mudi_core.eyes import embedded as eyes
from mudi_core.toy.world import COLORS, SPECIES
from mudi_core.vocabulary import tokenizer

from . import views
from .data import crowded
from .loop import Recipe, fit
from .views import Pixels

RECIPE = Recipe(steps=3500, learning_rate=1.0e-3, warmup=100, cooldown=0.5, ema=0.995)
BATCH = 32
SCENES = 10_000
ANY = ("character", "toy", "animal", "figure", "creature", "plush toy", "cartoon character")
"""Queries that every character answers."""
CORE = 0.2
"""Patches whose middle lies this close to a box's middle, in its widths and heights, answer for it."""
REACH = 0.45
"""And those this close learn its box too: where one speaks up, non-maximum suppression sees that it is the same."""
SMALLEST = 40
"""Pixels; less than this of somebody is nobody."""


def draw_queries(rng: np.random.Generator, shown: Pixels) -> tuple[list[str], Tensor, Tensor]:
    """One general query, every species, and six of species and colour, each in some wording; what they ask for
    ``[q]`` by index, -1 for anything."""
    kinds = [(-1, -1)] + [(s, -1) for s in range(len(SPECIES))]
    kinds += [tuple(shown[rng.integers(len(shown))]) for _ in range(4)]
    kinds += [(shown[rng.integers(len(shown))][0], int(rng.integers(len(COLORS)))) for _ in range(2)]
    texts = []
    for s, c in kinds:
        noun = ANY[rng.integers(len(ANY))] if s < 0 else SPECIES[s]
        words = f"{COLORS[c]} {noun}" if c >= 0 else noun
        article = "an" if words[0] in "ao" else "a"
        texts.append((words, f"a photo of {article} {words}", f"{article} {words}")[rng.choice(3, p=(0.6, 0.25, 0.15))])
    asked = torch.tensor([[int(s), int(c)] for s, c in kinds])
    return texts, asked[:, 0], asked[:, 1]


def answers(species: Tensor, colors: Tensor, asked_species: Tensor, asked_colors: Tensor) -> Tensor:
    """Which of n characters answer which of q queries: bool ``[n, q]``."""
    right = (asked_species < 0) | (species[:, None] == asked_species)
    return right & ((asked_colors < 0) | (colors[:, None] == asked_colors))


def assign(boxes: Tensor, patches: int, core: float) -> Tensor:
    """For boxes ``[n, 4]`` in fractions, the box whose core each patch ``[patches * patches]`` is in, -1 for none."""
    middle = (torch.arange(patches) + 0.5) / patches
    grid = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).view(-1, 1, 2)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    away = ((grid - centre) / size).abs().max(-1).values  # [patches^2, n]
    near, owner = away.min(1)
    owner = torch.where(near < core, owner, torch.full_like(owner, -1))
    owner[away.argmin(0)] = torch.arange(len(boxes))
    return owner


def start(model: Any) -> None:
    """Give the heads weights to begin with: transformers' own are so large that boxes and logits start saturated."""
    for head in (model.class_head, model.box_head, model.objectness_head):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    with torch.no_grad():
        model.box_head.dense2.weight.mul_(0.1)
        model.box_head.dense2.bias.copy_(torch.tensor([-0.5, -0.5, 1.5, 2.0]))  # a patch is smaller than a character
        # Logits of (cosine - 1) * 5: nobody is everybody's answer.
        model.class_head.logit_shift.weight.zero_()
        model.class_head.logit_shift.bias.fill_(-1.0)
        model.class_head.logit_scale.weight.zero_()
        model.class_head.logit_scale.bias.fill_(4.0)


def wrongly_found(
    logits: Tensor, predicted: Tensor, owner: Tensor, reach: Tensor, right: Tensor, boxes: Tensor
) -> Tensor:
    """The loss of a batch: focal cross entropy of what stands at a patch, L1 and generalized IoU of its box.

    ``logits [b, n, q]`` and boxes ``predicted [b, n, 4]`` of each patch; ``owner`` and ``reach`` ``[b, n]``: whose the
    patch is, as an index into ``right [k, q]`` and ``boxes [k, 4]``, or -1.
    """
    positive = owner >= 0
    truth = torch.where(positive[..., None], right[owner.clamp(min=0)], torch.zeros(()))
    wrong = (truth - logits.sigmoid()).abs()  # focal weight; its square left too many half-believed patches
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    class_loss = (wrong * entropy).sum() / positive.sum() / 2
    near = predicted[reach >= 0]
    centre, half = near[:, :2], near[:, 2:] / 2
    corners = torch.cat([centre - half, centre + half], -1)
    wanted = boxes[reach[reach >= 0]]
    overlap: Tensor = generalized_box_iou_loss(corners, wanted, reduction="mean")
    total: Tensor = class_loss + 5 * l1_loss(corners, wanted) + 2 * overlap
    return total


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict, without the fixed word vectors, under the name of its file."""
    torch.manual_seed(recipe.seed)
    pool = views.pool(work, SCENES, crowded)
    tokenize = tokenizer("!", eyes.QUERY_LENGTH)
    model: Any = eyes.build_owlv2()
    if recipe.further:
        family.fill(model, "owlv2")
    else:
        start(model)
    model.to(device)
    patches = model.num_patches_height
    from mudi_core.eyes.pixels import CLIP

    def loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        pictures: list[Pixels] = []
        cores: list[Tensor] = []
        reaches: list[Tensor] = []
        targets: list[Tensor] = []
        labels: list[Pixels] = []
        for index in rng.integers(0, len(pool.pictures), BATCH).tolist():
            picture, numbers = views.drawn(pool, index, rng)
            mean, deviation = CLIP
            pictures.append((picture - mean) / deviation)
            found = []
            for k, label in enumerate(pool.labels[index]):
                mask = (numbers == k + 1).view(np.uint8)
                if label[0] >= 0 and int(mask.sum()) >= SMALLEST:
                    x, y, w, h = cv2.boundingRect(mask)
                    found.append((x, y, x + w, y + h))
                    labels.append(label)
            boxes = torch.tensor(found).float() / views.SIDE
            for kept, core in ((cores, CORE), (reaches, REACH)):
                mine = assign(boxes, patches, core)
                kept.append(torch.where(mine >= 0, mine + len(labels) - len(found), mine))
            targets.append(boxes)
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float().to(device)
        owner, reach = torch.stack(cores).to(device), torch.stack(reaches).to(device)
        shown = np.stack(labels)
        texts, *asked = draw_queries(rng, shown)
        right = answers(torch.from_numpy(shown[:, 0]), torch.from_numpy(shown[:, 1]), *asked).float().to(device)

        tokens = tokenize(texts, padding="max_length", max_length=eyes.QUERY_LENGTH, return_tensors="pt").to(device)
        words = model.owlv2.text_projection(model.owlv2.text_model(**tokens).pooler_output)
        features, _ = model.image_embedder(pixel_values=images)
        flat = features.reshape(BATCH, patches * patches, -1)
        logits, _ = model.class_predictor(flat, words[None].expand(BATCH, -1, -1))
        predicted = model.box_predictor(flat, features).float()

        return wrongly_found(logits.float(), predicted, owner, reach, right, torch.cat(targets).to(device))

    average = fit(model, loss, recipe, work / "owlv2.pt")
    return {"owlv2": family.without_word_vectors(average.state_dict())}
