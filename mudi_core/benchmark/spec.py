"""What a benchmark runs: combos of subjects, methods, prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..bases.families import EMBEDDED, EMBEDDED_FLUX, usual
from ..eyes import eyes
from ..jobs.generate import GenerateConfig
from ..jobs.residual import residual_config
from ..score.matching import Matching
from ..subjects.prompt import SUBJECTS, with_article, write_prompt
from ..toy.pairs import MOST as MOST_DRAWN
from ..toy.pairs import Pair, drawn
from ..toy.world import PAIRS
from ..train.config import TrainConfig
from ..types import MudiError, SubjectSet
from .methods import METHODS

MOST_PICTURES = 1_000_000


class BadSpec(MudiError):
    """A spec that cannot be read, or that names something unknown."""


class Cell(NamedTuple):
    """One picture of the benchmark."""

    combo: str
    method: str
    prompt: int
    """Index into the spec's prompts."""
    seed: int
    training: int = 0
    """Which of the trainings of its method."""


@dataclass(frozen=True)
class Judges:
    """Which models score the pictures (names in the table of eyes), and how."""

    detector: str = "owlv2"
    embedder: str = "dinov2"
    threshold: float = 0.25
    cut_out: bool = False
    text_scorer: str = ""
    """Empty: no text fidelity."""
    matching: Matching = "in order"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise BadSpec(f"[judges] threshold is {self.threshold}; it must be 0..1.")
        tables = {
            "detector": list(eyes("detector")),
            "embedder": list(eyes("embedder")),
            "text_scorer": ["", *eyes("text scorer")],
        }
        for role, table in tables.items():
            if (name := getattr(self, role)) not in table:
                raise BadSpec(f"[judges] {role}: there is no {name!r}; there are: {', '.join(filter(None, table))}.")


@dataclass(frozen=True)
class Spec:
    """A benchmark. Paths of combos are absolute. Raises `BadSpec`."""

    name: str
    base: str
    """ "mini", or an SDXL file or folder."""
    combos: Mapping[str, str | int]
    """A dataset folder by name, or the number of a pair: of the toy world's six, or of those of `pairs_seed`."""
    methods: tuple[str, ...]
    """Names in `METHODS`; the report compares the last one with each of the others."""
    prompts: tuple[str, ...]
    """Each with {subjects} in place of the names."""
    seeds: int
    """Pictures of each combo, method and prompt."""
    seed: int = 0
    """The seed of photos and of the first training."""
    trainings: int = 1
    """Trainings of each combo and method, each with the next seed: a mean moves with it by more than methods differ."""
    pairs_seed: int | None = None
    """Draws the pairs whose numbers are in `combos` (`toy.pairs`), so that nobody chose them."""
    priors: int = 0
    """Pictures of other members of each class that the base model makes for prior preservation (paper, appendix B)."""
    steps_of: Mapping[str, int] = field(default_factory=dict)
    """Steps of the trainings of a method, or else of a combo, that differ from those of `train`."""
    general_nouns: Mapping[str, str] = field(default_factory=dict)
    """A noun for all subjects of a combo ("animal"), by combo, for the method "general"."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` that differ from the base model's usual ones."""
    generate: Mapping[str, Any] = field(default_factory=dict)
    """The same of `GenerateConfig`."""
    fuse: Mapping[str, Any] = field(default_factory=dict)
    """The same of `FuseConfig`."""
    residual: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` for residual tokens that differ from `jobs.residual.residual_config`."""
    judges: Judges = field(default_factory=Judges)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What a paper has printed for a method, by the name of the measure: shown beside ours, never among them."""

    def __post_init__(self) -> None:
        if not (self.combos and self.methods and self.prompts and self.seeds >= 1 and self.trainings >= 1):
            raise BadSpec(
                f"{self.name}: combos, methods and prompts need at least one entry, seeds and trainings are 1 or more."
            )
        for method in self.methods:
            if method not in METHODS:
                raise BadSpec(f"{self.name}: there is no method {method!r}; there are: {', '.join(METHODS)}.")
            self._check_base(method)
        for prompt in self.prompts:
            if SUBJECTS not in prompt:
                raise BadSpec(f"{self.name}: the prompt {prompt!r} has no {SUBJECTS} where the subjects are named.")
        for name in self.combos:
            if not name or name.startswith(".") or any(letter in name for letter in "/\\:\0"):
                raise BadSpec(f"{self.name}: {name!r} cannot be the name of a combo, because a folder gets this name.")
        for where in self.combos.values():
            if isinstance(where, int):
                self.pair(where)
        for name in self.published:
            if name not in METHODS:
                raise BadSpec(
                    f"{self.name}: [published] has {name!r}, which is no method; there are: {', '.join(METHODS)}."
                )
        for name, steps in self.steps_of.items():
            if name not in (*METHODS, *self.combos) or steps < 1:
                raise BadSpec(f"{self.name}: [steps_of] has {name} = {steps}; give 1 or more for a method or combo.")
        if self.priors < 0:
            raise BadSpec(f"{self.name}: priors is {self.priors}; it must be 0 or more.")
        for combo, noun in self.general_nouns.items():
            if combo not in self.combos or not noun.strip():
                raise BadSpec(
                    f"{self.name}: [general_nouns] has {combo!r} = {noun!r}; give a noun for one of the combos."
                )
        nameless = sorted(self.combos.keys() - self.general_nouns.keys())
        if nameless and any(METHODS[method].general for method in self.methods):
            raise BadSpec(f"{self.name}: [general_nouns] does not say what the subjects of '{nameless[0]}' all are.")
        if len(set(self.methods)) < len(self.methods):
            raise BadSpec(f"{self.name}: a method is named twice in 'methods'. Name each once.")
        pictures = len(self.combos) * len(self.methods) * len(self.prompts) * self.seeds * self.trainings
        if pictures > MOST_PICTURES:
            raise BadSpec(f"{self.name} asks for {pictures} pictures; up to {MOST_PICTURES} can be made. Take fewer.")

    def _check_base(self, method: str) -> None:
        """Raise `BadSpec` for a method that the base model cannot have."""
        rival = METHODS[method]
        if rival.in_attention and self.base == EMBEDDED_FLUX:
            raise BadSpec(
                f"{self.name}: '{method}' acts in a U-Net's cross-attention, which {self.base} does not have."
            )
        if rival.wears in ("references", "merge") and self.base != EMBEDDED:
            raise BadSpec(f"{self.name}: '{method}' has an adapter for the base model '{EMBEDDED}' only.")

    def cells(self) -> list[Cell]:
        """Return every picture, in the order of the spec. Where nothing is trained there is only one training."""
        return [
            Cell(combo, method, prompt, seed, training)
            for training in range(self.trainings)
            for combo in self.combos
            for method in self.methods
            for prompt in range(len(self.prompts))
            for seed in range(self.seeds)
            if training == 0 or not METHODS[method].zero_shot
        ]

    def train_config(self, method: str, side: int, training: int = 0, combo: str = "") -> TrainConfig:
        """Return how a method is trained on a combo; ``side``: of the base model's pictures, in pixels."""
        start = TrainConfig.usual(usual(self.base), seed=self.seed + training, resolution=side)
        config = start.but(**{**self.train, **METHODS[method].train})
        steps = self.steps_of.get(method) or self.steps_of.get(combo)
        return config.but(steps=steps) if steps else config

    def residual_config(self, training: int = 0) -> TrainConfig:
        """Return how residual tokens are trained."""
        return residual_config(usual(self.base), **{"seed": self.seed + training, **self.residual})

    def generate_config(self, cell: Cell, subjects: SubjectSet) -> GenerateConfig:
        """Return how the picture of a cell is made. Cells with the same seed and combo share noise and places."""
        prompt = write_prompt(self.names(cell, subjects), self.prompts[cell.prompt])
        start = GenerateConfig.usual(usual(self.base), prompt, len(subjects))
        config = replace(start, count=1, seed=cell.seed, **self.generate)
        return config if METHODS[cell.method].with_start else replace(config, gamma=0.0)

    def names(self, cell: Cell, subjects: SubjectSet) -> list[str]:
        """Return what the subjects are called in the cell's prompt: "a corgi" where a method has no tokens."""
        named = self.as_named(cell, subjects)
        if METHODS[cell.method].by_noun:
            return [with_article(one.class_noun) for one in named]
        return [subject.name for subject in named]

    def as_named(self, cell: Cell, subjects: SubjectSet) -> SubjectSet:
        """Return the subjects with the class nouns that the cell's method uses."""
        if not METHODS[cell.method].general:
            return subjects
        noun = self.general_nouns[cell.combo]
        return SubjectSet(tuple(replace(subject, class_noun=noun) for subject in subjects))

    def pair(self, number: int) -> Pair:
        """Return a drawn pair of characters by its number in `combos`. Raise `BadSpec`."""
        most = len(PAIRS) if self.pairs_seed is None else MOST_DRAWN
        if not 0 <= number < most:
            raise BadSpec(f"{self.name}: there is no pair {number}; there are 0 to {most - 1}.")
        return PAIRS[number] if self.pairs_seed is None else drawn(self.pairs_seed, number + 1)[number]

    def as_json(self) -> dict[str, Any]:
        """Return what the result of a cell depends on; without what may become more: methods, seeds and trainings."""
        growing = ("name", "methods", "seeds", "trainings", "judges", "published")
        ours = {key: value for key, value in vars(self).items() if key not in growing}
        judges = dict(vars(self.judges))
        for name, usual_one in (("pairs_seed", None), ("priors", 0), ("steps_of", {}), ("fuse", {}), ("residual", {})):
            if ours[name] == usual_one:  # folders of before do not name these
                del ours[name]
        if self.judges.matching == "in order":
            del judges["matching"]
        return {**ours, "judges": judges}
