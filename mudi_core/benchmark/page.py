"""The benchmark as one HTML file: means with their intervals, matrices, and every picture beside its rivals'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import product

import torch
from torch import Tensor

from ..report.chart import Bar, bar_chart
from ..report.html import SIGNS, frame, scored
from ..report.statistics import hierarchical_interval, smallest_seen
from ..score.compare import look_alike
from .methods import METHODS
from .results import Result, Results
from .spec import Cell, Spec
from .table import Summary, paired, summaries

MEASURES = {
    "text_fidelity": "text fidelity",
    "similarity": "similarity",
    "similarity_product": "its product",
    "collapse": "SCR@0.4",
    "seconds": "seconds a picture",
}
"""The other measures of a `Summary`, shown when there is one, by their heads."""
PICTURE_SIDE = 256
"""Pixels: larger pictures are made smaller, so that the page is small enough to send."""

MOST_ABREAST = 8
"""Methods whose pictures share the page's width: those of more are scrolled sideways."""

MOST_SHOWN = 12_000
"""Pictures of a page: more would make a file that no browser opens."""


def page(results: Results, done: Sequence[Result]) -> str:
    """Return the whole page for the finished cells, at least one."""
    spec = results.spec
    by_method = summaries(spec.methods, done)
    body = [
        f"<h1>{escape(spec.name)}</h1>",
        f'<p class="lead">Methods: {len(spec.methods)}. Combos of subjects: {len(spec.combos)}. Prompts: '
        f"{len({text for combo in spec.combos for text in spec.prompts_of(combo)})}. Seeds: {spec.seeds}. Trainings: "
        f"{spec.trainings}. Here are {len(done)} of "
        f"{len(spec.cells())} pictures. All methods share the photos, the trainer, its steps, the prompts and the "
        "noise.</p>",
        _scores(by_method),
        _table(by_method),
        *(f"<p>{escape(words)}</p>" for words in results.remarks().values()),
        _published(spec),
        _differences(tuple(by_method), done),
        _success(spec, done),
    ]
    if len(done) > MOST_SHOWN:
        body.append(f"<p>{len(done)} pictures are too many for a page: they are in the folders of their combos.</p>")
    else:
        of_combo = {combo: [one for one in done if one.cell.combo == combo] for combo in spec.combos}
        body += [_combo(results, combo, own) for combo, own in of_combo.items() if own]
    return frame(f"{spec.name}: benchmark", "\n".join(body))


def _scores(by_method: Mapping[str, Summary]) -> str:
    bars = {method: Bar(METHODS[method].title, one.mean, one.low, one.high) for method, one in by_method.items()}
    return f"""<h2>Detect-and-Compare</h2>
<div class="panel">{bar_chart(bars, "Mean Detect-and-Compare score")}</div>
<p>Means over all pictures with their 95&nbsp;% bootstrap intervals. 1: everybody is there and as like their own photos,
and as unlike the others', as the photos are. 0: a wrong number of figures. Below 0: identities stand in for each
other.</p>"""


def _table(by_method: Mapping[str, Summary]) -> str:
    shown = [name for name in MEASURES if any(getattr(one, name) is not None for one in by_method.values())]
    sides = any(one.on_their_side is not None for one in by_method.values())
    further = list(dict.fromkeys(name for one in by_method.values() for name in one.whole))
    rows = ""
    for method, one in by_method.items():
        combos = "–" if one.combos_interval is None else "{:.3f} to {:.3f}".format(*one.combos_interval)
        values = [getattr(one, name) for name in shown]
        values += [value for name in further for value in one.whole.get(name, (None, None))]
        side = f"<td>{'–' if one.on_their_side is None else f'{one.on_their_side:.0%}'}</td>"
        measures = "".join(f"<td>{'–' if value is None else f'{value:.3f}'}</td>" for value in values)
        rows += (
            f"<tr><td>{METHODS[method].title}</td><td>{one.count}</td><td>{one.mean:.3f}</td>"
            f"<td>{one.low:.3f} to {one.high:.3f}</td><td>{combos}</td>"
            f"<td>{one.spectral:.3f}</td><td>{one.success:.0%}</td><td>{one.right_count:.0%}</td>"
            f"{side if sides else ''}{measures}</tr>"
        )
    return f"""<table class="wide"><tr><th>method</th><th>pictures</th><th>D&amp;C</th><th>over pictures</th>
<th>over combos</th><th>spectral</th><th>success</th><th>right count</th>
{"<th>on their side, if told</th>" if sides else ""}
{"".join(f"<th>{MEASURES[name]}</th>" for name in shown)}
{"".join(f"<th>{escape(name)}</th><th>its product</th>" for name in further)}</tr>{rows}</table>
<p class="soft">The second interval draws combos, their trainings and then pictures, since pictures of one combo
share subjects and LoRAs: it says how sure the mean is for other subjects and trainings. Success: everybody there once,
as themselves. {_SIDES if sides else ""}
Similarity: of whole pictures to the photos, which does not notice who is mixed; its product over the subjects is called
M-DINO with DINO (dino-s16), its mean CLIP-I with CLIP (clip-b32). SCR@0.4: Subject Collapse Rate (arXiv 2603.26078),
the share of subjects to whom the whole picture is less similar than 0.4, a limit made for DINOv2. Seconds: to make a
picture, without training and score; of CPU time on a CPU, of the clock on a card.</p>"""


_SIDES = """On their side: the share of pictures in which the figure that Detect-and-Compare matches with each subject
is nearer to the place that this subject was given than to any other's, whoever it looks like; with two subjects half of
the right count is chance. Only methods that are told places have it: those with our start, and those with regions."""


def _published(spec: Spec) -> str:
    """Return what a paper has printed for the methods, as a table of its own."""
    titled = {METHODS[method].title: values for method, values in spec.published.items()}
    printed = [*titled.items(), *spec.also_published.items()]
    if not printed:
        return ""
    measures = list(dict.fromkeys(name for _, values in printed for name in values))
    rows = ""
    for title, values in printed:
        cells = "".join(f"<td>{f'{values[name]:.3f}' if name in values else '–'}</td>" for name in measures)
        rows += f"<tr><td>{escape(title)}</td>{cells}</tr>"
    return f"""<h2>As published</h2>
<table class="wide"><tr><th>method</th>{"".join(f"<th>{escape(name)}</th>" for name in measures)}</tr>{rows}</table>
<p class="soft">Printed in the paper, on its own photos, prompts and weights. Not made here.</p>"""


def _differences(methods: Sequence[str], done: Sequence[Result]) -> str:
    *rivals, best = methods
    rows = ""
    for rival in rivals:
        differences = paired(done, best, rival)
        values = [one for trainings in differences.values() for own in trainings.values() for one in own]
        if not values:
            continue
        low, high = hierarchical_interval(differences)
        least = smallest_seen(differences)
        above = sum(value > 0 for value in values) / len(values)
        rows += (
            f"<tr><td>{METHODS[rival].title}</td><td>{sum(values) / len(values):+.3f}</td>"
            f"<td>{low:+.3f} to {high:+.3f}</td><td>{above:.0%}</td>"
            f"<td>{'–' if least is None else f'{least:.3f}'}</td></tr>"
        )
    if not rows:
        return ""
    return f"""<h2>{METHODS[best].title} against each, from the same noise</h2>
<table class="wide"><tr><th>against</th><th>difference</th><th>95&nbsp;% interval</th><th>higher in</th>
<th>seen from</th></tr>{rows}</table>
<p class="soft">The interval draws combos, trainings and pictures. Seen from: the least true difference that combos
which vary like these show in 80 of 100 repetitions.</p>"""


def _success(spec: Spec, done: Sequence[Result]) -> str:
    charts = ""
    for subjects in sorted({len(one.comparison.tokens) for one in done}):
        by_method = summaries(spec.methods, [one for one in done if len(one.comparison.tokens) == subjects])
        bars = {
            method: Bar(METHODS[method].title, one.success, one.success_low, one.success_high)
            for method, one in by_method.items()
        }
        charts += f'<h3>{subjects} subjects</h3><div class="panel">{bar_chart(bars, "Share of successes")}</div>'
    return f"<h2>Success by the number of subjects</h2>{charts}"


def _combo(results: Results, combo: str, done: Sequence[Result]) -> str:
    spec = results.spec
    count = len(spec.methods)
    many, wide = ("rows many", "minmax(110px, 1fr)") if count > MOST_ABREAST else ("rows", "1fr")
    columns = f'class="{many}" style="grid-template-columns: repeat({count}, {wide})"'
    heads = "".join(f'<div class="head method-{method}">{METHODS[method].title}</div>' for method in spec.methods)
    by_cell = {one.cell: one for one in done}
    grids = ""
    shots = spec.shots(combo)
    for number, prompt in enumerate(spec.prompts_of(combo)):
        cells = heads
        for training, seed in product(range(spec.trainings), [seed for one, seed in shots if one == number]):
            for method in spec.methods:
                one = by_cell.get(Cell(combo, method, number, seed, training))
                cells += _picture(results, one) if one is not None else "<figure></figure>"
        grids += f"<h3><code>{escape(prompt)}</code></h3><div {columns}>{cells}</div>"
    first = done[0].comparison
    remarks = "".join(f'<p class="lead">{escape(words)}</p>' for words in look_alike(first.tokens, first.s_gt))
    return f"""<h2>{escape(combo)}</h2>
{remarks}{_matrices(spec, done)}
<details><summary>{len(done)} pictures, a row for each seed and training</summary>
<p class="legend">{"".join(f'<span class="pill {s}">{SIGNS[s]} {s}</span>' for s in SIGNS)}</p>{grids}</details>"""


def _picture(results: Results, one: Result) -> str:
    if not results.path(one.cell, ".png").is_file():  # the results came without their pictures
        return f"<figure><figcaption>{one.comparison.score:.2f}</figcaption></figure>"
    return scored(results.image(one.cell), one.comparison, photo=True, side=PICTURE_SIDE)


def _matrices(spec: Spec, done: Sequence[Result]) -> str:
    """Return the similarities of the references, and the means of each method over pictures with a right count."""
    first = done[0].comparison
    shown = _matrix("the photos themselves", first.tokens, first.s_gt)
    for method in spec.methods:
        right = [one.comparison.s_dc for one in done if one.cell.method == method and one.comparison.count_is_right]
        title = f"{METHODS[method].title}, {len(right)} pictures"
        shown += _matrix(title, first.tokens, torch.stack(right).mean(0) if right else None)
    return f'<div class="matrices">{shown}</div>'


def _matrix(title: str, tokens: Sequence[str], values: Tensor | None) -> str:
    if values is None:
        return f"<figure><figcaption>{escape(title)}</figcaption></figure>"
    head = "".join(f"<th>{escape(token)}</th>" for token in tokens)
    rows = "".join(
        f"<tr><th>{escape(token)}</th>"
        + "".join(f'<td style="--share: {min(max(value, 0), 1):.2f}">{value:.2f}</td>' for value in row)
        + "</tr>"
        for token, row in zip(tokens, values.tolist(), strict=True)
    )
    shown = f'<table class="matrix"><tr><td></td>{head}</tr>{rows}</table>'
    return f"<figure>{shown}<figcaption>{escape(title)}</figcaption></figure>"
