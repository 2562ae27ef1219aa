"""D&C Score: pictures become scores that say which subjects are there and look like themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import convert, drawing, host
from .host import widgets
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.eyes import Detector, Embedder
    from ..mudi_core.score.compare import References
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
                widgets.model("embedder", "The model that compares them: DINOv2 or DreamSim."),
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
    ) -> io.NodeOutput:
        pictures = convert.pictures(images)
        detect, embed = host.detector(detector[0], download[0]), host.embedder(embedder[0], download[0])
        results = compared(pictures, subjects[0], detect, embed, query[0], threshold[0], cut_out[0])
        titles = [f"picture {number}" for number in range(1, len(pictures) + 1)]
        order, cards, verdicts = ranking(pictures, results, subjects[0], titles)
        scores = [result.score for result in results]
        mean = sum(scores) / len(scores)
        verdict = f"mean of {len(scores)}: {mean:.2f}\n{verdicts}"
        return io.NodeOutput(
            scores,
            mean,
            convert.image_batch(drawing.stacked(cards)),
            verdict,
            _batches([pictures[i] for i in order]),
            ui=host.preview(cards, cls, verdict),
        )


def compared(
    pictures: Sequence[Tensor],
    subjects: SubjectSet,
    detect: Detector,
    embed: Embedder,
    query: str,
    threshold: float,
    cut_out: bool,
) -> list[Comparison]:
    """Score each picture ``[h, w, 3]`` by Detect-and-Compare.

    ``query``, ``threshold`` and ``cut_out`` are the values of the node's widgets: words separated by commas, the least
    confidence of a figure (0 to 1), and whether to compare with cut-out subjects. Obeys Cancel.
    """
    return compared_with(pictures, subjects, detect, embed, query, threshold, cut_out)[0]


def compared_with(
    pictures: Sequence[Tensor],
    subjects: SubjectSet,
    detect: Detector,
    embed: Embedder,
    query: str,
    threshold: float,
    cut_out: bool,
) -> tuple[list[Comparison], References]:
    """Score pictures as `compared` does; return the embedded photos of the subjects too."""
    from ..mudi_core.score.compare import References, compare
    from ..mudi_core.score.verdicts import limits_of

    words = [word.strip() for word in query.split(",") if word.strip()] or None
    results: list[Comparison] = []
    with host.progress()("comparing") as update:

        def embedded(images: Sequence[Tensor]) -> Tensor:
            update(len(results), len(pictures))  # obeys Cancel between two subjects, too
            return embed(images)

        references = References(subjects, embedded, cut_out, limits_of(embed))
        for picture in pictures:
            results.append(compare(picture, references, detect, embedded, words, threshold))
            update(len(results), len(pictures))
    return results, references


def ranking(
    pictures: Sequence[Tensor], results: Sequence[Comparison], subjects: SubjectSet, titles: Sequence[str]
) -> tuple[list[int], list[Tensor], str]:
    """Return the pictures' indices, a card ``[h, w, 3]`` for each, and the verdicts in words, all best first.

    ``titles``: of the pictures, in their own order.
    """
    from ..mudi_core.score.compare import ANCHORS, best_first, look_alike

    order = best_first(results)
    headings = {i: f"{titles[i]}: {results[i].headline}" for i in order}
    lines = look_alike([subject.name for subject in subjects], results[0].s_gt)
    cards = [drawing.score_card(pictures[i], results[i], headings[i], lines) for i in order]
    for i in order:
        said = (results[i].reason, *(verdict.text for verdict in results[i].verdicts))
        lines += [headings[i], *(f"  {words}" for words in said if words)]
    return order, cards, "\n".join([*lines, ANCHORS])


def _batches(pictures: list[Tensor]) -> list[Tensor]:
    """Return one batch, or one for each picture where sizes differ."""
    if len({picture.shape for picture in pictures}) == 1:
        return [convert.image_batch(pictures)]
    return [convert.image_batch([picture]) for picture in pictures]
