"""What is an embedding, how many dimensions are there, is it 2D or 3D?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import CONFIDENCE, DRAWS, Estimate
from zerotollm.explain.figures.marks import Axis, Bars, Cloud, Dots, Line, Panel, said, spread, visible
from zerotollm.explain.words import KINDS, readable_token, token_kinds

MAPPED = 500
"""Tokens on the map."""
NEIGHBOURS = 8
MOST = 8000
"""Tokens whose geometry is measured, the most frequent. More tokens cost time and change little."""
GROUPS = 64
"""Groups of vectors that the bootstrap draws: as accurate as single vectors, and a hundred times as fast."""
SHUFFLED = 99
"""Tables with shuffled principal components; the 95th of their largest cosines is exceeded by chance in 5 %."""
SPAN = 32
"""Principal components within which the largest of a bootstrap sample are computed."""
LABELLED = 32
"""Most labels on the flat map, ..."""
TRIED = 150
"""... chosen among this many of the most frequent tokens."""
NEIGHBOUR_PANELS = 40


@dataclass(frozen=True)
class Geometry:
    """How a cloud of N vectors fills its D dimensions."""

    num_vectors: int
    spectrum_D: np.ndarray
    """variance along each principal component, the largest first"""
    participation: Estimate[float]
    """participation ratio: (sum of variances)^2 / sum of their squares; 1 for a line, D for a ball"""
    first_two: Estimate[float]
    """share of the variance in the first 2 principal components"""
    first_three: Estimate[float]
    chance_participation: float
    """of as many vectors of independent normal numbers"""
    chance_three: float
    chance_spectrum_D: np.ndarray

    def sentence(self) -> str:
        D = len(self.spectrum_D)
        three = "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * x for x in self.first_three))
        chance = f"{100 * self.chance_three:.1f} % for random vectors"
        facts = (
            f"{D} numbers per token, spread like {self.participation.value:.1f} "
            f"[{self.participation.low:.1f}, {self.participation.high:.1f}] equally used dimensions; "
            f"the first 3 principal components hold {three} of the variance"
        )
        if self.first_three.low > 0.9:
            return f"{facts}: it is nearly a {'2D' if self.first_two.low > 0.9 else '3D'} cloud."
        if self.first_three.high < 2 * self.chance_three:
            return f"{facts} ({chance}): a picture in 2D or 3D shows almost nothing of it."
        return f"{facts} ({chance}): a picture in 3D leaves the rest out."


def geometry(vectors_ND: np.ndarray) -> Geometry:
    """Return the principal components (Pearson 1901) and the participation ratio (Gao et al. 2017, bioRxiv 214262,
    equation 5) of N vectors, with bootstrap intervals over vectors.

    The ratio of a sample is biased down if N is not far above D. Compare it with `chance_participation`, which is of
    a sample of the same size.
    """
    x_ND = np.asarray(vectors_ND, np.float64)
    N, D = x_ND.shape
    spectrum_D = _spectrum(x_ND)
    chance_D = _spectrum(np.random.default_rng(0).standard_normal((N, D)))
    chance, values = _summary(chance_D), _summary(spectrum_D)
    # Not percentiles: a sample of a sample is biased once more, so they would lie beside the value.
    half = 1.96 * _bootstrap(x_ND).std(0)
    estimates = Estimate(values, values - half, values + half)
    participation, two, three = (estimates.at(i) for i in range(3))
    return Geometry(N, spectrum_D, participation, two, three, float(chance[0]), float(chance[2]), chance_D)


def _spectrum(x_ND: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of the covariance, descending."""
    centered_ND = x_ND - x_ND.mean(0, keepdims=True)
    return np.maximum(np.linalg.eigvalsh(centered_ND.T @ centered_ND / len(x_ND))[::-1], 0)


def _bootstrap(x_ND: np.ndarray) -> np.ndarray:
    """Return `_summary` of X samples of groups of vectors, (X, 3).

    A sample's covariance is a sum over groups, and so are its trace and the sum of its squares. Its largest eigenvalues
    are computed within the `SPAN` first components of all vectors (Rayleigh and Ritz).
    """
    N, D = x_ND.shape
    x_ND = x_ND - x_ND.mean(0, keepdims=True)
    order_N = np.random.default_rng(0).permutation(N)
    groups = [x_ND[group].astype(np.float32) for group in np.array_split(order_N, min(GROUPS, N))]
    G = len(groups)
    weights_XG = np.random.default_rng(0).multinomial(G, np.full(G, 1 / G), DRAWS // 2)
    gram_GY = np.stack([(x.T @ x).ravel() for x in groups])
    size_G, sum_GD = np.array([len(x) for x in groups]), np.stack([x.sum(0, dtype=float) for x in groups])
    total_X = weights_XG @ size_G
    mean_XD = weights_XG @ sum_GD / total_X[:, None]
    length_X = np.square(mean_XD).sum(1)
    along_XG = np.stack([np.square(x @ mean_XD.T.astype(np.float32)).sum(0) for x in groups], axis=1)
    trace_G = gram_GY[:, :: D + 1].sum(1, dtype=float)
    variance_X = weights_XG @ trace_G / total_X - length_X
    squares_X = ((weights_XG @ (gram_GY @ gram_GY.T).astype(float)) * weights_XG).sum(1) / total_X**2
    squares_X += length_X**2 - 2 * (weights_XG * along_XG).sum(1) / total_X

    axes_DY = np.linalg.eigh(gram_GY.sum(0).reshape(D, D))[1][:, -SPAN:]
    inner_GYY = np.stack([(x @ axes_DY).T @ (x @ axes_DY) for x in groups])
    covariance_XYY = np.tensordot(weights_XG / total_X[:, None], inner_GYY, 1)
    mean_XY = mean_XD @ axes_DY
    covariance_XYY -= mean_XY[:, :, None] * mean_XY[:, None]
    largest_XY = np.linalg.eigvalsh(covariance_XYY)[:, ::-1]
    variance_X = np.maximum(variance_X, 1e-300)
    shares = [largest_XY[:, :components].sum(1) / variance_X for components in (2, 3)]
    return np.stack([variance_X**2 / np.maximum(squares_X, 1e-300), *shares], axis=1)


def _summary(spectrum_D: np.ndarray) -> np.ndarray:
    """Return the participation ratio and the shares of the first 2 and 3 components."""
    total = max(spectrum_D.sum(), 1e-300)
    ratio = total**2 / max(np.square(spectrum_D).sum(), 1e-300)
    return np.array([ratio, spectrum_D[:2].sum() / total, spectrum_D[:3].sum() / total])


@dataclass(frozen=True)
class Neighbours:
    """The K tokens whose embeddings have the largest cosine with the embedding of one token."""

    piece: str
    id: int
    ids_K: np.ndarray
    pieces: tuple[str, ...]
    cosine_K: np.ndarray
    """after subtracting the mean of all embeddings (Mu and Viswanath 2018, arXiv:1702.01417)"""
    chance: float
    """see `closest_by_chance`"""

    def panel(self) -> Panel:
        """Draw the cosines as bars, and the largest one expected by chance as a line."""
        names = tuple(map(visible, self.pieces))
        hover = said("{} and {}: cosine {:.3f}", visible(self.piece), names, self.cosine_K)
        limit = ("with shuffled principal components no token asked for is closer, with 95 %",) * 2
        marks = (
            Bars(self.cosine_K, range(len(names)), across=True, hover=hover),
            Line([self.chance] * 2, [-0.5, len(names) - 0.5], color=6, dashed=True, hover=limit),
        )
        axes = Axis("cosine; dotted: as close as by chance", span=(0, 1)), Axis(names=names, down=True)
        return Panel("Nearest neighbours", marks, *axes, height=320, choice=visible(self.piece))


@dataclass(frozen=True)
class Embeddings(Answer):
    """The embedding table as a cloud of points."""

    geometry: Geometry
    """of the most frequent tokens"""
    map_ids_N: np.ndarray
    """ids on the map, the most frequent first"""
    map_pieces: tuple[str, ...]
    map_kinds_N: np.ndarray
    """indices into `zerotollm.explain.words.KINDS`"""
    map_N3: np.ndarray
    """their first three principal components"""
    neighbours: tuple[Neighbours, ...]
    title = "The embedding"

    def sentence(self) -> str:
        text = self.geometry.sentence()
        close = [n for n in self.neighbours if n.cosine_K[0] > n.chance]
        if not self.neighbours:
            return text
        if not close:
            return f"{text} No token asked for is shown to be closer to another than expected by chance."
        best = max(close, key=lambda n: n.cosine_K[0])
        return (
            f"{text} {len(close)} of {len(self.neighbours)} tokens are closer to another than expected by chance: "
            f"{best.piece!r} the closest, to {best.pieces[0]!r} (cosine {best.cosine_K[0]:.2f}; with shuffled "
            f"principal components no token asked for exceeds {best.chance:.2f}, with 95 %)."
        )

    def panels(self) -> Iterator[Panel]:
        cloud, flat = [], []
        for k, name in enumerate(KINDS):
            at = np.flatnonzero(self.map_kinds_N == k)
            if not len(at):
                continue
            pieces = tuple(visible(self.map_pieces[i]) for i in at)
            cloud.append(Cloud(self.map_N3[at], name, k, pieces))
            flat.append(Dots(self.map_N3[at, 0], self.map_N3[at, 1], name, k, hover=pieces, size=6))
        at = _apart(self.map_N3[:, :2])
        names = tuple(visible(self.map_pieces[i]) for i in at)
        flat.append(Dots(self.map_N3[at, 0], self.map_N3[at, 1], "", 6, size=0.1, text=names, hover=names))
        title = f"The {len(self.map_ids_N)} most frequent tokens in 3D: turn it"
        yield Panel(title, tuple(cloud), height=430)
        yield Panel("The same in 2D", tuple(flat), Axis("component 1"), Axis("component 2"), height=430)
        D = len(self.geometry.spectrum_D)
        at = spread(D)
        lines = []
        for name, spectrum_D, color in (
            ("this model", self.geometry.spectrum_D, 0),
            ("as many random vectors", self.geometry.chance_spectrum_D, 6),
        ):
            share = (100 * np.cumsum(spectrum_D) / max(spectrum_D.sum(), 1e-300))[at]
            hover = said("{}: the first {} of {} hold {:.1f} %", name, at + 1, D, share)
            lines.append(Line(at + 1, share, name, color, dashed=color == 6, hover=hover))
        axes = Axis("principal components", log=True), Axis("% of the variance", span=(0, 101))
        yield Panel("What a picture leaves out", tuple(lines), *axes, height=320)
        yield from (n.panel() for n in self.neighbours[:NEIGHBOUR_PANELS])


def _apart(xy_N2: np.ndarray) -> list[int]:
    """Return the first points whose labels do not overlap those of earlier points."""
    unit_N2 = (xy_N2 - xy_N2.min(0)) / np.maximum(np.ptp(xy_N2, axis=0), 1e-12)
    labelled: list[int] = []
    for i, (x, y) in enumerate(unit_N2[:TRIED]):
        if len(labelled) < LABELLED and all(
            abs(x - unit_N2[j, 0]) > 0.11 or abs(y - unit_N2[j, 1]) > 0.04 for j in labelled
        ):
            labelled.append(i)
    return labelled


def explain_embeddings(
    embedding_VD: np.ndarray,
    tokenizer: AnyTokenizer,
    counts_V: np.ndarray | None = None,
    ids: Sequence[int] = (),
) -> Embeddings:
    """Return the geometry of the embeddings of tokens that occur, a map of the most frequent, and neighbours of `ids`.

    Without `counts_V`, all tokens except special ones are used, in the order of their ids.
    """
    counts_V = np.ones(min(tokenizer.vocab_size, len(embedding_VD))) if counts_V is None else counts_V
    kinds_V = token_kinds(tokenizer)
    occurring = np.flatnonzero((counts_V > 0) & (kinds_V != KINDS.index("special")))
    used_N = occurring[np.argsort(-counts_V[occurring], kind="stable")][:MOST]
    pieces = [readable_token(tokenizer, i) for i in used_N]
    x_ND = np.asarray(embedding_VD[used_N], np.float64)
    centered_ND = x_ND - x_ND.mean(0, keepdims=True)
    mapped_ND = centered_ND[:MAPPED] - centered_ND[:MAPPED].mean(0)
    axes_DD = np.linalg.eigh(mapped_ND.T @ mapped_ND)[1][:, ::-1]
    asked = [np.flatnonzero(used_N == i)[0] for i in dict.fromkeys(ids) if i in used_N]
    chance = closest_by_chance(centered_ND, len(asked)) if asked else 1.0
    lengths_N = np.maximum(np.linalg.norm(centered_ND, axis=1), 1e-12)
    neighbours = []
    for n in asked:
        cosine_N = centered_ND @ centered_ND[n] / (lengths_N * lengths_N[n])
        cosine_N[n] = -np.inf
        near = np.argsort(-cosine_N, kind="stable")[:NEIGHBOURS]
        close = used_N[near], tuple(pieces[i] for i in near), cosine_N[near]
        neighbours.append(Neighbours(pieces[n], int(used_N[n]), *close, chance))
    return Embeddings(
        geometry=geometry(x_ND),
        map_ids_N=used_N[:MAPPED],
        map_pieces=tuple(pieces[:MAPPED]),
        map_kinds_N=kinds_V[used_N[:MAPPED]],
        map_N3=centered_ND[:MAPPED] @ axes_DD[:, :3],
        neighbours=tuple(neighbours),
    )


def closest_by_chance(centered_ND: np.ndarray, asked: int) -> float:
    """Return the cosine that the closest neighbour of any of the first `asked` vectors exceeds by chance in 5 %.

    The null model shuffles each principal component across the vectors (Horn 1965 shuffles variables), which keeps
    the distribution of its scores. Random directions are a wrong null model: a few components hold much of the variance
    and widen the distribution of all cosines.
    """
    random = np.random.default_rng(0)
    axes_DD = np.linalg.eigh(centered_ND.T @ centered_ND)[1]
    scores_ND = (centered_ND @ axes_DD).astype(np.float32)
    closest = np.empty(SHUFFLED)
    for draw in range(SHUFFLED):
        random.permuted(scores_ND, axis=0, out=scores_ND)
        lengths_N = np.maximum(np.linalg.norm(scores_ND, axis=1), 1e-12)
        cosine_AN = scores_ND[:asked] @ scores_ND.T / (lengths_N[:asked, None] * lengths_N)
        cosine_AN[np.arange(asked), np.arange(asked)] = -np.inf
        closest[draw] = cosine_AN.max()
    return float(min(1.0, np.sort(closest)[math.ceil(CONFIDENCE * (SHUFFLED + 1)) - 1]))
