"""D&C Score: pictures become scores that say which subjects are there and look like themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import convert, drawing, host
from .given_boxes import GivenBoxes
from .host import widgets
from .seeds import titles
from .sockets import Subjects, boxes_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.eyes import Detector, Embedder
    from ..mudi_core.progress import Update
    from ..mudi_core.types import Comparison, SubjectSet


class CompareSubjects(io.ComfyNode):  # type: ignore[misc]
    """Score pictures by Detect-and-Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiCompare",
            essentials_category="Characters",
            display_name="D&C Score (MuDI)",
            category="MuDI/4 compare",
            description="Detect-and-Compare: finds the figures in each picture, compares each with the photos of every "
            "subject, and says who is found, unlike the photos, mixed, missing or doubled. 1 is a perfect score; a "
            "picture with a wrong number of figures scores 0. Pictures of any model can be judged.",
            search_aliases=[
                "Detect-and-Compare",
                "identity",
                "identity score",
                "face similarity",
                "SFace",
                "DINOv2",
                "DreamSim",
                "similarity",
                "best of batch",
                "rank images",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures to judge, as a batch or a list."),
                Subjects.Input("subjects", tooltip="Who should be in every picture."),
                widgets.model("detector", "The model that finds the figures."),
                widgets.model(
                    "embedder",
                    "The model that compares them: DINOv2 or DreamSim; sface compares only the faces of persons.",
                ),
                widgets.threshold(
                    "Least confidence of a figure. Lower it when figures are overlooked, raise it when more "
                    "are seen than there are."
                ),
                widgets.query(),
                widgets.cut_out(
                    "Compare with the subjects cut out of their photos. Off: with the whole photos, as the paper's "
                    "code does."
                ),
                widgets.download(),
                boxes_input(
                    "The figures in each picture, found by another node such as SAM3 Detect: no detector is loaded.",
                    optional=True,
                ),
                io.Int.Input(
                    "seeds",
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    force_input=True,
                    tooltip="From Seeds, which is also the sampler's: each picture is then called by its seed.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One for each picture, in their order.",
                ),
                io.Float.Output("mean", display_name="mean", tooltip="The mean of the scores."),
                io.Image.Output(
                    "matrices",
                    display_name="matrices",
                    tooltip="A card for each picture, best first: its figures, who resembles whom, and the verdicts.",
                ),
                io.String.Output("verdict", display_name="verdict", tooltip="The same in words, best first."),
                io.Image.Output(
                    "ranked",
                    display_name="ranked",
                    is_output_list=True,
                    tooltip="The pictures, best first: one batch, or a list where sizes differ.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        subjects: list[SubjectSet],
        detector: list[str],
        embedder: list[str],
        threshold: list[float],
        query: list[str],
        cut_out: list[bool],
        download: list[bool],
        boxes: list[Any] | None = None,
        seeds: list[int] | None = None,
    ) -> io.NodeOutput:
        names, pictures = titles(images, seeds), convert.pictures(images)
        given = GivenBoxes(boxes, pictures) if boxes else None
        how = Judging(detector[0], embedder[0], threshold[0], query[0], cut_out[0], download[0], given)
        results = compared(pictures, subjects[0], how)
        order, cards, verdicts = ranking(pictures, results, names)
        scores = [result.score for result in results]
        mean = sum(scores) / len(scores)
        right, all_of = sum(result.success for result in results), f"{len(scores)} picture{'s'[: len(scores) > 1]}"
        verdict = f"all themselves in {right} of {all_of}, mean score {mean:.2f}\n{verdicts}"
        return io.NodeOutput(
            scores,
            mean,
            convert.image_batch(drawing.stacked(cards)),
            verdict,
            _batches([pictures[i] for i in order]),
            ui=host.preview(cards, cls, verdict),
        )


@dataclass(frozen=True)
class Judging:
    """How Detect-and-Compare is done: the values of `widgets.judging`."""

    detector: str
    embedder: str
    threshold: float
    """Least confidence of a figure, 0..1."""
    query: str = ""
    """Words separated by commas; empty: the subjects' class nouns."""
    cut_out: bool = False
    """Compare with cut-out subjects."""
    download: bool = False
    given: Detector | None = None
    """What has the boxes of another node, in the detector's place."""

    def eyes(self) -> tuple[Detector, Embedder]:
        """Load detector and embedder. Raise `MissingWeights` or `MissingModel`: before an hour of sampling."""
        detect = self.given or host.detector(self.detector, self.download)
        return detect, host.embedder(self.embedder, self.download)


class Judge:
    """Detect-and-Compare with the photos of the subjects, which are embedded once. Obeys Cancel."""

    def __init__(self, subjects: SubjectSet, how: Judging) -> None:
        from ..mudi_core.score.compare import References
        from ..mudi_core.score.verdicts import limits_of

        self.how = how
        _, embed = how.eyes()
        self.references = References(subjects, _hearing(embed), how.cut_out, limits_of(embed))

    def __call__(self, pictures: Sequence[Tensor], update: Update = lambda *done: None) -> list[Comparison]:
        """Score each picture ``[h, w, 3]``; ``update`` hears how many are scored."""
        from ..mudi_core.score.compare import compare

        words = [word.strip() for word in self.how.query.split(",") if word.strip()] or None
        detect, embed = self.how.eyes()  # ComfyUI may have moved them away since
        results: list[Comparison] = []
        for picture in pictures:
            host.hear_cancel()
            results.append(compare(picture, self.references, detect, _hearing(embed), words, self.how.threshold))
            update(len(results), len(pictures))
        return results

    def one(self, picture: Tensor) -> Comparison:
        """Score one picture ``[h, w, 3]``."""
        return self([picture])[0]


def _hearing(embed: Embedder) -> Embedder:
    """Return the embedder, which obeys Cancel each time before it is used: between two subjects, too."""

    def embedded(images: Sequence[Tensor]) -> Tensor:
        host.hear_cancel()
        return embed(images)

    return embedded


def compared(pictures: Sequence[Tensor], subjects: SubjectSet, how: Judging) -> list[Comparison]:
    """Score each picture ``[h, w, 3]``, on the node's progress bar."""
    how.eyes()  # fetching them has a bar of its own
    with host.progress()("comparing") as update:
        return Judge(subjects, how)(pictures, update)


def ranking(
    pictures: Sequence[Tensor], results: Sequence[Comparison], titles: Sequence[str]
) -> tuple[list[int], list[Tensor], str]:
    """Return the pictures' indices, a card ``[h, w, 3]`` for each, and the verdicts in words, all best first.

    ``titles``: of the pictures, in their own order.
    """
    from ..mudi_core.score.compare import ANCHORS, best_first

    order = best_first(results)
    headings = {i: f"{titles[i]}: {results[i].in_words}" for i in order}
    lines = list(results[0].remarks)
    cards = [drawing.score_card(pictures[i], results[i], headings[i], lines) for i in order]
    for i in order:
        told = (verdict.text for verdict in results[i].verdicts)
        said = (results[i].reason, *told, f"score {results[i].score:.2f}")
        lines += [headings[i], *(f"  {words}" for words in said if words)]
    return order, cards, "\n".join([*lines, ANCHORS])


def _batches(pictures: list[Tensor]) -> list[Tensor]:
    """Return one batch, or one for each picture where sizes differ."""
    if len({picture.shape for picture in pictures}) == 1:
        return [convert.image_batch(pictures)]
    return [convert.image_batch([picture]) for picture in pictures]
