"""What a benchmark runs: combos of subjects, methods, prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..bases.families import EMBEDDED, EMBEDDED_FLUX, usual
from ..jobs.generate import GenerateConfig
from ..jobs.residual import residual_config
from ..stage.layout_text import Place
from ..subjects.prompt import SUBJECTS, with_article
from ..toy.pairs import MOST as MOST_DRAWN
from ..toy.pairs import Cast, drawn, drawn_cast
from ..toy.world import PAIRS, SubjectSpec
from ..train.config import GOING_ON, TrainConfig
from ..types import SubjectSet
from .groups import Own
from .judges import BadSpec, Judges
from .methods import METHODS
from .wording import places_in, worded

MOST_PICTURES = 1_000_000


class Cell(NamedTuple):
    """One picture of the benchmark."""

    combo: str
    method: str
    prompt: int
    """Index into the prompts of the combo."""
    seed: int
    training: int = 0
    """Which of the trainings of its method."""


@dataclass(frozen=True)
class Spec:
    """A benchmark. Paths of combos are absolute. Raises `BadSpec`."""

    name: str
    base: str
    """ "mini", or an SDXL file or folder."""
    combos: Mapping[str, str | int | Cast | tuple[str, ...]]
    """A dataset folder by name; or the folder or picture of each subject; or the number of a pair: of the toy world's
    six, or of those of `pairs_seed`; or a cast of that seed, which a rule names."""
    methods: tuple[str, ...]
    """Names in `METHODS`; the report compares the last one with each of the others."""
    prompts: tuple[str, ...]
    """Each with {subjects} in place of the names, or {0}, {1} and so on where each is."""
    seeds: int
    """Pictures of each combo, method and prompt."""
    seed: int = 0
    """The seed of photos and of the first training."""
    trainings: int = 1
    """Trainings of each combo and method, each with the next seed: a mean moves with it by more than methods differ."""
    pairs_seed: int | None = None
    """Draws the pairs and casts that are in `combos` (`toy.pairs`), so that nobody chose them."""
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
    decouple: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` for the training on top of a fusion that differ from `train` and, over it, from the
    preset "decouple"."""
    residual: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` for residual tokens that differ from `jobs.residual.residual_config`."""
    judges: Judges = field(default_factory=Judges)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What a paper has printed for a method, by the name of the measure: shown beside ours, never among them."""
    also_published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same of systems that are no methods here, by their names."""
    adapter: str = ""
    """The file of the reference adapter that "references" and "merge" wear; empty: the embedded one."""
    image_encoder: str = ""
    """The folder of the CLIP image encoder that it was trained with; empty: the embedded embedder."""
    nouns: Mapping[str, str] = field(default_factory=dict)
    """Class nouns of subjects that are plain photos, by their paths: they are found and cut out when first needed."""
    own: Mapping[str, Own] = field(default_factory=dict)
    """What combos have of their own."""

    def __post_init__(self) -> None:
        prompts = all(self.prompts_of(combo) for combo in self.combos)
        if not (self.combos and self.methods and prompts and self.seeds >= 1 and self.trainings >= 1):
            raise BadSpec(
                f"{self.name}: combos, methods and prompts need at least one entry, seeds and trainings are 1 or more."
            )
        for method in self.methods:
            if method not in METHODS:
                raise BadSpec(f"{self.name}: there is no method {method!r}; there are: {', '.join(METHODS)}.")
            self._check_base(method)
        for prompt in self.prompts:
            if SUBJECTS not in prompt and not places_in(prompt):
                raise BadSpec(f"{self.name}: the prompt {prompt!r} has no {SUBJECTS} where the subjects are named.")
        for name in self.combos:
            if not name or name.startswith(".") or any(letter in name for letter in "/\\:\0"):
                raise BadSpec(f"{self.name}: {name!r} cannot be the name of a combo, because a folder gets this name.")
        if self.pairs_seed is None and any(isinstance(where, Cast) for where in self.combos.values()):
            raise BadSpec(f"{self.name}: [casts] need a 'pairs_seed', which draws them.")
        for combo, where in self.combos.items():
            if isinstance(where, (int, Cast)):
                self.characters(combo)
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
        pictures = sum(len(self.shots(combo)) for combo in self.combos) * len(self.methods) * self.trainings
        if pictures > MOST_PICTURES:
            raise BadSpec(f"{self.name} asks for {pictures} pictures; up to {MOST_PICTURES} can be made. Take fewer.")

    def _check_base(self, method: str) -> None:
        """Raise `BadSpec` for a method that the base model cannot have."""
        rival = METHODS[method]
        if rival.in_attention and self.base == EMBEDDED_FLUX:
            raise BadSpec(
                f"{self.name}: '{method}' acts in a U-Net's cross-attention, which {self.base} does not have."
            )
        if rival.wears in ("references", "merge") and self.base != EMBEDDED and not self.adapter:
            raise BadSpec(
                f"{self.name}: '{method}' has an adapter for the base model '{EMBEDDED}' only. Name another: 'adapter'."
            )

    @property
    def cuts_out(self) -> bool:
        """Whether subjects have to be cut out of pictures: of priors, of plain photos, or painted by LoRAs."""
        decoupled = any(METHODS[method].singles == "decoupled" for method in self.methods)
        return bool(self.priors or self.nouns or decoupled)

    def prompts_of(self, combo: str) -> tuple[str, ...]:
        """Return the prompts of a combo: its own, or the spec's."""
        return (self.own[combo].prompts if combo in self.own else ()) or self.prompts

    def shots(self, combo: str) -> list[tuple[int, int]]:
        """Return prompt and seed of each picture of a combo, method and training."""
        prompts = len(self.prompts_of(combo))
        pictures = self.own[combo].pictures if combo in self.own else 0
        return sorted((i % prompts, i // prompts) for i in range(pictures or prompts * self.seeds))

    def cells(self) -> list[Cell]:
        """Return every picture, in the order of the spec. Where nothing is trained there is only one training."""
        return [
            Cell(combo, method, prompt, seed, training)
            for training in range(self.trainings)
            for combo in self.combos
            for method in self.methods
            for prompt, seed in self.shots(combo)
            if training == 0 or not METHODS[method].zero_shot
        ]

    def train_config(self, method: str, side: int, training: int = 0, combo: str = "") -> TrainConfig:
        """Return how a method is trained on a combo; ``side``: of the base model's pictures, in pixels."""
        start = TrainConfig.usual(usual(self.base), seed=self.seed + training, resolution=side)
        config = start.but(**{**self.train, **METHODS[method].train})
        steps = self.steps_of.get(method) or self.steps_of.get(combo)
        return config.but(steps=steps) if steps else config

    def decouple_config(self, side: int, training: int = 0) -> TrainConfig:
        """Return how a fusion of LoRAs is trained to keep its subjects apart; ``side`` as for `train_config`."""
        return self.train_config("segmix", side, training).but(**{**GOING_ON["decouple"], **self.decouple})

    def residual_config(self, training: int = 0) -> TrainConfig:
        """Return how residual tokens are trained."""
        return residual_config(usual(self.base), **{"seed": self.seed + training, **self.residual})

    def generate_config(self, cell: Cell, subjects: SubjectSet) -> GenerateConfig:
        """Return how the picture of a cell is made. Cells with the same seed and combo share noise and places."""
        prompt = worded(self.names(cell, subjects), self.text(cell))
        config = replace(self.picture_config(prompt, len(subjects)), seed=cell.seed)
        if cell.combo in self.own and (boxes := self.own[cell.combo].boxes):
            config = replace(config, places=dict(zip(subjects.tokens, map(Place, boxes), strict=True)))
        return config if METHODS[cell.method].with_start else replace(config, gamma=0.0)

    def picture_config(self, prompt: str = "", subjects: int = 1) -> GenerateConfig:
        """Return how any one picture is made."""
        start = GenerateConfig.usual(usual(self.base), prompt, subjects)
        return replace(start, count=1, **self.generate)

    def text(self, cell: Cell) -> str:
        """Return the prompt of a cell without names."""
        return self.prompts_of(cell.combo)[cell.prompt]

    def names(self, cell: Cell, subjects: SubjectSet) -> list[str]:
        """Return what the subjects are called in the cell's prompt: "a corgi" where a method has no tokens."""
        named = self.as_named(cell, subjects)
        if METHODS[cell.method].by_noun:
            bare = places_in(self.text(cell))  # such a prompt has its own articles
            return [one.class_noun if bare else with_article(one.class_noun) for one in named]
        return [subject.name for subject in named]

    def as_named(self, cell: Cell, subjects: SubjectSet) -> SubjectSet:
        """Return the subjects with the class nouns that the cell's method uses."""
        if not METHODS[cell.method].general:
            return subjects
        noun = self.general_nouns[cell.combo]
        return SubjectSet(tuple(replace(subject, class_noun=noun) for subject in subjects))

    def characters(self, combo: str) -> tuple[SubjectSpec, ...]:
        """Return the drawn characters of a combo. Raise `BadSpec`, also for one that is of photos."""
        where = self.combos[combo]
        if isinstance(where, Cast):
            assert self.pairs_seed is not None, "checked before"
            try:
                return drawn_cast(self.pairs_seed, where)
            except ValueError as error:
                raise BadSpec(f"{self.name}: '{combo}' cannot be drawn: {error}") from error
        if not isinstance(where, int):
            raise BadSpec(f"Combo '{combo}' is a folder; only characters of the toy world can be drawn.")
        most = len(PAIRS) if self.pairs_seed is None else MOST_DRAWN
        if not 0 <= where < most:
            raise BadSpec(f"{self.name}: there is no pair {where}; there are 0 to {most - 1}.")
        return PAIRS[where] if self.pairs_seed is None else drawn(self.pairs_seed, where + 1)[where]

    def as_json(self) -> dict[str, Any]:
        """Return what the result of a cell depends on; without what may become more: methods, seeds and trainings."""
        growing = ("name", "methods", "seeds", "trainings", "judges", "published", "also_published", "own")
        ours = {key: value for key, value in vars(self).items() if key not in growing}
        if self.own:
            ours["own"] = {combo: own.as_json() for combo, own in self.own.items()}
        usual_ones: dict[str, Any] = {"pairs_seed": None, "priors": 0, "adapter": "", "image_encoder": ""}
        usual_ones |= dict.fromkeys(("steps_of", "fuse", "decouple", "residual", "nouns"), {})
        # folders of before do not name these
        ours = {key: value for key, value in ours.items() if key not in usual_ones or value != usual_ones[key]}
        return {**ours, "judges": self.judges.as_json()}
