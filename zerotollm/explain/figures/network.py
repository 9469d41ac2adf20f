"""Pictures of what happens inside: layers, prediction, attention."""

from typing import TYPE_CHECKING

import numpy as np

from zerotollm.explain.attention import NAMES
from zerotollm.explain.figures.marks import Axis, Bars, Dots, Heat, Line, Panel, said
from zerotollm.explain.figures.picture import Picture
from zerotollm.explain.figures.text import visible
from zerotollm.explain.statistics import Estimate

if TYPE_CHECKING:
    from zerotollm.explain.ablation import Ablation
    from zerotollm.explain.alignment import Alignment
    from zerotollm.explain.attention import AttentionMaps, Heads
    from zerotollm.explain.calibration import Calibration, LossByPosition
    from zerotollm.explain.layers import Layers
    from zerotollm.explain.prediction import Prediction

LENS = 16
"""Tokens of a text whose logit lens is drawn, the last ones."""
PRODUCTS = 12
"""Products that a logit is the sum of, shown one by one."""


def place_names(M: int) -> tuple[str, ...]:
    """The M places of the residual stream."""
    return ("embedding", *(f"layer {m}" for m in range(1, M)))


def _with_interval(name: str, estimate: Estimate, names: tuple[str, ...], color: int) -> Line:
    value, low, high = (np.asarray(x, float) for x in estimate)
    hover = tuple(
        f"{place}, {name}: {v:.3f} [{a:.3f}, {b:.3f}]"
        for place, v, a, b in zip(names, value, low, high, strict=True)
    )
    return Line(range(len(value)), value, name, color, low, high, hover, dots=True)


def layers(found: "Layers") -> Picture:
    """How alike the vectors of a token are, and what a linear probe reads from them, layer by layer."""
    names = place_names(len(found.context_M))
    axis = Axis(names=tuple(name.removeprefix("layer ") for name in names), label="after layer")
    any_ = tuple(f"{n}, any two tokens: {v:.3f}" for n, v in zip(names, found.any_similarity_M, strict=True))
    similar = (
        _with_interval("the same token elsewhere", found.self_similarity_M, names, 0),
        _with_interval("its own sentence", found.sentence_similarity_M, names, 2),
        Line(range(len(names)), found.any_similarity_M, "any two tokens", 6, hover=any_, dots=True),
    )
    share = 100 * found.context_M
    hover = said("{}: {:.1f} % of the variance is context", names, share)
    bars = Bars(range(len(names)), share, hover=hover)
    where = f"{found.where.capitalize()}: " if found.where else ""
    panels = [
        Panel(f"{where}Cosine with ...", similar, axis, Axis("cosine")),
        Panel(f"{where}How much of the variance is context", (bars,), axis, Axis("%", span=(0, 100))),
    ]
    for probe in found.probes:
        control = tuple(f"{n}, control: {v:.3f}" for n, v in zip(names, probe.control_M, strict=True))
        marks = (
            _with_interval("linear probe", probe.accuracy_M, names, 0),
            Line(range(len(names)), probe.control_M, "control: labels by lot", 6, hover=control, dots=True),
            Line([0, len(names) - 1], [probe.majority] * 2, "the most frequent answer", 1, dashed=True),
        )
        panels.append(Panel(f"{where}Probe: {probe.task}", marks, axis, Axis("share right", span=(0, 1))))
    return Picture("From one vector to many", tuple(panels), found.sentence())


def prediction(found: "Prediction") -> Picture:
    """The ten likeliest tokens, the sum that gives the first its logit, and the logit lens over the text."""
    names = tuple(visible(piece) for piece in found.best_pieces)
    p = found.probabilities_V[found.best_K]
    logits = found.logits_V[found.best_K]
    sampler = f"the sampler's at temperature {found.temperature:g}"
    hover = tuple(
        f"{n}: logit {z:.3f}, probability {v:.4f}, {sampler} {d:.4f}"
        for n, z, v, d in zip(names, logits, p, found.sampled_V[found.best_K], strict=True)
    )
    best = Bars(p, range(len(names)), across=True, hover=hover, text=tuple(f"{v:.3f}" for v in p))
    title = f"After {visible(found.pieces[-1])}: the likeliest tokens"
    panels = [
        Panel(
            title,
            (best,),
            Axis("probability"),
            Axis(names=names, down=True),
        ),
        _products(found),
    ]
    T = len(found.pieces)
    first = max(0, T - LENS)
    M = len(found.lens_best_MT)
    shown = [[visible(found.lens_pieces[m][t]) for t in range(first, T)] for m in range(M)]
    short = tuple(tuple(s if len(s) < 9 else f"{s[:7]}…" for s in row) for row in shown)
    p_MT = found.lens_best_p_MT[:, first:]
    places = place_names(M)
    hover_rows = tuple(
        tuple(
            f"after {visible(found.pieces[first + t])}, read out after {places[m]}: {shown[m][t]} with {p_MT[m, t]:.3f}"
            for t in range(T - first)
        )
        for m in range(M)
    )
    lens = Heat(p_MT, "probability", hover_rows, text=short)
    text = tuple(visible(piece) for piece in found.pieces[first:])
    axes = Axis("after reading ...", names=text), Axis(names=places)
    panels.append(
        Panel("Logit lens: what each layer would say next", (lens,), *axes, height=110 + 44 * M, wide=True)
    )
    if found.lens_nats_MT.shape[1]:
        mean_M = found.lens_nats_MT.mean(1)
        hover = tuple(f"{n}: {v:.3f} nats per token" for n, v in zip(places, mean_M, strict=True))
        bars = Bars(range(M), mean_M, hover=hover)
        axes = Axis("read out after", names=places), Axis("nats per token of this text")
        panels.append(Panel("The text's own next tokens, layer by layer", (bars,), *axes))
    return Picture("How the next token is predicted", tuple(panels), found.sentence())


def _products(found: "Prediction") -> Panel:
    """The running sum of hidden x head for the likeliest token, the largest products first, the rest as one."""
    products_D = found.products_KD[0]
    order = np.argsort(-np.abs(products_D), kind="stable")
    top = order[:PRODUCTS]
    rest = products_D[order[PRODUCTS:]].sum()
    state = np.where(found.hidden_D[top] == 0, 1e-30, found.hidden_D[top])
    heights = np.append(products_D[top], rest)
    names = (*(f"#{d}" for d in top), "the rest")
    hover = (
        *said(
            "feature {}: {:+.3f} x {:+.3f} = {:+.3f}", top, state, products_D[top] / state, products_D[top]
        ),
        f"the other {len(products_D) - len(top)} products: {rest:+.3f}",
    )
    up = heights >= 0
    marks = tuple(
        Bars(
            heights[sign],
            np.flatnonzero(sign),
            color=color,
            across=True,
            name=name,
            hover=tuple(h for h, s in zip(hover, sign, strict=True) if s),
        )
        for sign, color, name in ((up, 0, "for it"), (~up, 1, "against it"))
        if sign.any()
    )
    title = f"The logit of {visible(found.best_pieces[0])} is a sum: {found.logits_V[found.best_K[0]]:.2f}"
    return Panel(title, marks, Axis("state x head"), Axis("feature", names=names, down=True))


def reliability(found: "Calibration") -> Picture:
    """The reliability diagram: how sure against how often right."""
    full = np.flatnonzero(found.count_X)
    e = found.accuracy_X
    hover = said(
        "sure to {:.1f} %, right {:.1f} % [{:.1f}, {:.1f}] of {:,} times",
        *(100 * x[full] for x in (found.confidence_X, *e)),
        found.count_X[full],
    )
    marks = (
        Line([0, 1], [0, 1], "exactly right", 6, dashed=True),
        Dots(
            found.confidence_X[full], e.value[full], "this model", 0, e.low[full], e.high[full], hover=hover
        ),
    )
    unit = (-0.02, 1.02)
    axes = Axis("how sure it was", span=unit), Axis("how often it was right", span=unit)
    panel = Panel("Is 70 % right 70 % of the time?", marks, *axes)
    middle = 50 * (found.edges[:-1] + found.edges[1:])
    count = Bars(middle, found.count_X, hover=said("{:,} predictions", found.count_X))
    often = Panel("How sure it is how often", (count,), Axis("how sure, %"), Axis("predictions"))
    return Picture("Can the probabilities be believed?", (panel, often), found.sentence())


def positions(found: "LossByPosition") -> Picture:
    """Loss against the place in the window."""
    e = found.nats_Y
    middle = np.sqrt((found.first_Y + 1) * (found.last_Y + 1))
    hover = tuple(
        f"places {a + 1} to {b + 1}: {v:.3f} [{low:.3f}, {high:.3f}] nats"
        for a, b, v, low, high in zip(found.first_Y, found.last_Y, *e, strict=True)
    )
    line = Line(middle, e.value, "", 0, e.low, e.high, hover, dots=True)
    axes = Axis(f"place in the {found.of}", log=True), Axis("nats per token")
    return Picture("Loss by position", (Panel("Does more context help?", (line,), *axes),), found.sentence())


def attention(found: "AttentionMaps") -> Picture:
    """A map of every head, and of the mean of all."""
    L, H, _, _ = found.weights_LHTS.shape
    chosen = [("mean of all heads", found.weights_LHTS.mean((0, 1)))]
    chosen += [(f"layer {i + 1}, head {h + 1}", found.weights_LHTS[i, h]) for i, h in np.ndindex(L, H)]
    names = tuple(map(visible, found.pieces))
    title = f"Attention of the {found.where}" if found.where else "Attention on the text"
    return Picture(
        "Where attention looks",
        tuple(map_panel(title, weights, names, names, choice) for choice, weights in chosen),
        found.sentence(),
    )


def map_panel(
    title: str, weights_TS: np.ndarray, queries: tuple[str, ...], keys: tuple[str, ...], choice: str
) -> Panel:
    """Attention of queries, downwards, to keys."""
    heat = Heat(weights_TS, "attention", hover_template="{y} takes {z} from {x}")
    axes = Axis("looks at", names=keys), Axis("token", names=queries, down=True)
    height = int(np.clip(120 + 26 * len(queries), 260, 720))
    return Panel(title, (heat,), *axes, height=height, choice=choice, wide=True)


def alignment(found: "Alignment") -> Picture:
    """Cross attention: from each token of the translation to the source."""
    L, H, _, _ = found.weights_LHTS.shape
    chosen = [("mean of all heads", found.weights_LHTS.mean((0, 1)))]
    chosen += [(f"layer {i + 1}, head {h + 1}", found.weights_LHTS[i, h]) for i, h in np.ndindex(L, H)]
    source, target = (tuple(map(visible, pieces)) for pieces in (found.source, found.target))
    return Picture(
        "Cross attention",
        tuple(
            map_panel("From the translation to its source", w, target, source, choice) for choice, w in chosen
        ),
        found.sentence(),
    )


def heads(found: "Heads") -> Picture:
    """What each head looks at, how widely, and how far back."""
    L, H = found.entropy_LH.shape
    names = tuple(f"{i + 1}.{h + 1}" for i, h in np.ndindex(L, H))
    e = found.score_PLH
    z = e.value.reshape(len(found.roles), L * H)
    low, high = (x.reshape(z.shape) for x in (e.low, e.high))
    hover = tuple(
        tuple(
            f"head {n}, {role}: {z[p, i]:.3f} [{low[p, i]:.3f}, {high[p, i]:.3f}], evenly {found.even_P[p]:.3f}"
            for i, n in enumerate(names)
        )
        for p, role in enumerate(found.roles)
    )
    cells = tuple(tuple(f"{v:.2f}" for v in row) for row in z) if L * H <= 24 else ()
    heat = Heat(z, "share of attention", hover, text=cells, span=(0.0, max(0.3, float(z.max()))))
    axes = Axis("head, as layer.head", names=names), Axis(names=found.roles, down=True)
    roles = Panel(f"What each of the {NAMES[found.where]} looks at", (heat,), *axes, height=300, wide=True)

    open_ = found.entropy_LH.ravel()
    hover = said("head {}: {:.2f} nats, as over {:.0f} tokens alike", names, open_, np.exp(open_))
    entropy = Dots(range(L * H), open_, "this model", 0, hover=hover)
    even = Line([-0.5, L * H - 0.5], [found.even_entropy] * 2, "evenly over all", 6, dashed=True)
    axes = Axis("head", names=names), Axis("entropy, nats", span=(0, found.even_entropy * 1.1))
    widely = Panel(f"How widely each of the {NAMES[found.where]} looks", (entropy, even), *axes)

    title = f"What the {NAMES[found.where]} do"
    if found.profile_LHT is None:
        return Picture(title, (roles, widely), found.sentence())
    profile_LT = found.profile_LHT.mean(1)
    back = np.arange(profile_LT.shape[1]) + 1
    lines = [
        Line(
            back,
            np.maximum(profile_LT[i], 1e-6),
            f"layer {i + 1}",
            i % 6,
            hover=said("layer {}, {} back: {:.4f}", i + 1, back - 1, profile_LT[i]),
        )
        for i in range(L)
    ]
    lines.append(Line(back, np.maximum(found.even_profile_T, 1e-6), "evenly", 6, dashed=True))
    axes = Axis("tokens back + 1", log=True), Axis("attention", log=True)
    far = Panel("How far back, mean of a layer's heads", tuple(lines), *axes)
    return Picture(title, (roles, widely, far), found.sentence())


def ablation(found: "Ablation") -> Picture:
    """How much the loss rises without each head, and with its mean output in its place."""
    names = tuple(f"{i + 1}.{h + 1}" for i, h in np.ndindex(found.rise_LH.value.shape))
    panels = []
    for how, rise in (("without", found.rise_LH), ("with the mean of", found.mean_rise_LH)):
        if rise is None:
            continue
        value, low, high = (np.asarray(x).ravel() for x in rise)
        hover = tuple(
            f"{how} head {n} the loss of {found.loss:.3f} rises by {v:+.4f} [{a:+.4f}, {b:+.4f}] nats"
            for n, v, a, b in zip(names, value, low, high, strict=True)
        )
        bars = Bars(range(len(names)), value, low=low, high=high, hover=hover)
        title = f"{how.capitalize()} each of the {NAMES[found.where]}: rise of the loss"
        panels.append(Panel(title, (bars,), Axis("head, as layer.head", names=names), Axis("nats per token")))
    return Picture("Does a head matter?", tuple(panels), found.sentence())
