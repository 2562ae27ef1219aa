"""The demo as one HTML file: pictures inside, no script, nothing loaded from anywhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ..report.chart import loss_chart, strip_chart
from ..report.html import SIGNS, frame, image, scored
from ..report.statistics import interval
from ..stage.segmix import compose
from .settings import ARMS

if TYPE_CHECKING:
    from .result import DemoResult

STAGES = {
    "photos": "drawing the photos",
    "prepare": "finding and cutting out the characters",
    "segmix": "the Seg-Mix sheet",
    "train_dreambooth": "training the DreamBooth LoRA",
    "train_segmix": "training the Seg-Mix LoRA",
    "generate": "sampling all pictures",
    "compare": "Detect-and-Compare of all pictures",
}

OWN_PHOTOS = """
python -m mudi_core prepare photos/rex --query dog --token olis --class-noun corgi --base FILE --out dogs
python -m mudi_core prepare photos/bella --query dog --token hta --class-noun poodle --base FILE --out dogs
python -m mudi_core train dogs --base FILE --out dogs.safetensors
python -m mudi_core generate --base FILE --lora dogs.safetensors --dataset dogs --out pictures
python -m mudi_core compare pictures --dataset dogs --base FILE
""".strip()


def page(result: DemoResult, report: dict[str, Any]) -> str:
    """Return the whole page. ``report``: the content of report.json."""
    sections = (_results, _subjects, _training, _rows, _reading, _time)
    noun = result.pair[0].class_noun
    return frame(
        "MuDI: two characters in one picture",
        f"""<h1>Two {escape(_plural(noun))}, one picture: does each stay itself?</h1>
<p class="lead">{escape(_looks(result, 0))} and {escape(_looks(result, 1))}. The models had never seen either.
They got {result.settings.photos} photos of each, a few minutes of training on this machine's processor, and the prompt
<code>{escape(result.prompt)}</code>.</p>
{"".join(section(result, report) for section in sections)}
<footer class="soft">Seed {result.seed}, pair {report["pair"]}. The same command makes the same page. Numbers for
machines are in <code>report.json</code>; photos, masks, LoRAs and pictures lie beside it.</footer>""",
    )


def _results(result: DemoResult, report: dict[str, Any]) -> str:
    cards = []
    for name, arm in ARMS.items():
        numbers = report["methods"][name]
        low, high = numbers["interval"]
        cards.append(
            f'<div class="card method-{name}"><b>{arm.title}</b><span class="score">{numbers["mean"]:.2f}</span>'
            f"<small>95&nbsp;% interval {low:.2f} to {high:.2f}</small><p>Both characters there, each as itself, in "
            f"<b>{numbers['both_found']} of {len(numbers['dc'])}</b> pictures. {escape(arm.about)}</p></div>"
        )
    differences = [m - d for m, d in zip(result.scores("mudi"), result.scores("dreambooth"), strict=True)]
    low, high = interval(differences)
    mean = sum(differences) / len(differences)
    better = sum(difference > 0 for difference in differences)
    chart = strip_chart({name: (arm.title, result.scores(name)) for name, arm in ARMS.items()})
    return f"""<div class="cards">{"".join(cards)}</div>
<div class="panel">{chart}</div>
<p>Detect-and-Compare score of every picture (small dots), the mean (large dot), its 95&nbsp;% bootstrap interval
(bar). 1 means that both characters are there and as much like their own photos, and as little like each other's, as the
photos are. From the same noise, MuDI's picture scores higher than DreamBooth's in {better} of {len(differences)}
cases, by {mean:+.2f} on average (95&nbsp;% interval {low:+.2f} to {high:+.2f}).</p>"""


def _subjects(result: DemoResult, report: dict[str, Any]) -> str:
    blocks = []
    for i, subject in enumerate(result.subjects.subjects):
        figures = []
        for number, photo in enumerate(subject.photos):
            cut_out = result.cutouts.get(subject.token, number).sizes[0]
            figures.append(
                f"<figure>{image(photo.image, f'photo {number + 1} of {subject.name}', photo=True)}"
                f'<div class="cutout">{image(cut_out, f"its cut-out {number + 1}")}</div></figure>'
            )
        title = f'<h3><code>{escape(subject.name)}</code> <span class="soft">{escape(_looks(result, i))}</span></h3>'
        blocks.append(f'<div class="subject">{title}<div class="photos">{"".join(figures)}</div></div>')
    return f"""<h2>1. Photos become subjects</h2>
<p>Each photo goes through an open-vocabulary detector (“{escape(result.pair[0].class_noun)}”) and a segmenter. Nobody
drew a mask: below each photo is what was cut out of it.</p>
{"".join(blocks)}"""


def _training(result: DemoResult, report: dict[str, Any]) -> str:
    sheet = "".join(image(mix.image, mix.caption) for mix in result.sheet)
    titles = {"dreambooth": "DreamBooth", "segmix": "Seg-Mix"}
    chart = loss_chart({method: (titles[method], values) for method, values in result.losses.items()})
    legend = "".join(f'<span class="method-{m}"><i></i>{titles[m]}</span>' for m in result.losses)
    settings = result.settings
    return f"""<h2>2. Subjects become training images and a LoRA</h2>
<p>Seg-Mix puts the cut-outs side by side at random sizes and places. {settings.segmix_prob:.0%} of the training
images are such compositions, the others are the photos: so the model learns that the two names belong to two
different characters.</p>
<div class="sheet">{sheet}</div>
<div class="panel">{chart}<div class="legend">{legend}
<span>loss over {settings.train_steps} steps, averaged over stretches; the two see different images, so their heights
cannot be compared</span></div></div>"""


def _rows(result: DemoResult, report: dict[str, Any]) -> str:
    cells = ['<div class="head start">start of MuDI</div>']
    cells += [f'<div class="head method-{name}">{arm.title}</div>' for name, arm in ARMS.items()]
    for number in range(len(result.pictures["mudi"])):
        canvas = compose(result.pictures["mudi"][number].layout, result.cutouts).image
        cells.append(f'<figure class="start">{image(canvas, "cut-outs at random places")}</figure>')
        cells += [scored(result.pictures[name][number].image, result.comparisons[name][number]) for name in ARMS]
    return f"""<h2>3. Pictures from the same noise</h2>
<p>In each row all three start from the same noise. MuDI's is shifted by {result.settings.gamma:g} times the encoded
cut-outs on the left, which is hardly visible in the noise and enough to say who is where. Every picture is shown, none
was picked. Point at one to see what the detector found.</p>
<p class="legend">{"".join(f'<span class="pill {s}">{SIGNS[s]} {s}</span>' for s in SIGNS)}
<span>with each character's share of the likeness; score 0.00: not exactly two figures were found</span></p>
<div class="rows">{"".join(cells)}</div>"""


def _reading(result: DemoResult, report: dict[str, Any]) -> str:
    return f"""<h2>How to read this</h2>
<p>These pictures are small ({result.settings.size} px) and the characters are drawn: a model family of SDXL's
architecture that fits into the repository was trained on a toy world, so that the whole way can be walked on any
machine. What it shows is the method, and that each step works; how good real pictures are depends on the SDXL model,
and is not shown here.</p>
<p>All three methods share photos, training steps, prompt, seeds and noise. Strengths and sizes were
chosen on other characters. {len(result.pictures["mudi"])} pictures from one training are few: another seed gives other
numbers within about the intervals, and the training itself varies too, which they do not contain. The detector and
the embedder that give the score are models as well, and can be wrong.</p>"""


def _time(result: DemoResult, report: dict[str, Any]) -> str:
    longest = max(result.seconds.values())
    rows = "".join(
        f"<tr><td>{STAGES[name]}</td>"
        f'<td><span class="bar" style="width:{1 + 140 * seconds / longest:.0f}px"></span></td>'
        f"<td>{seconds:.1f} s</td></tr>"
        for name, seconds in result.seconds.items()
    )
    return f"""<h2>Time it took</h2>
<table>{rows}<tr><td><b>together</b></td><td></td><td><b>{sum(result.seconds.values()):.0f} s</b></td></tr></table>
<h2>Your own photos</h2>
<p>The same steps, with your photos and your SDXL model as <code>FILE</code>:</p>
<pre><code>{OWN_PHOTOS}</code></pre>"""


def _looks(result: DemoResult, i: int) -> str:
    looks = result.pair[i].character.describe()
    return (
        f"{'An' if looks[0] in 'aeiou' else 'A'} {looks}"
        if i == 0
        else f"{'an' if looks[0] in 'aeiou' else 'a'} {looks}"
    )


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s", "ch")) else "s")
