"""What is an embedding, how many dimensions are there, is it 2D or 3D?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.statistics import CONFIDENCE, DRAWS, Estimate
from zerotollm.explain.words import KINDS, kinds_of, shown

SHOWN = 500
"""Tokens on the map."""
NEIGHBOURS = 8
MOST = 8000
"""Tokens whose geometry is measured, the most frequent: more change little and cost time."""
GROUPS = 64
"""Of vectors that the bootstrap draws whole: as good as vectors one by one, and a hundred times as fast."""
SHUFFLED = 99
"""Tables with shuffled principal components: the 95th of their closest cosines is passed by chance in 5 % of all."""
SPAN = 32
"""Principal components among which the largest of a sample are sought."""


@dataclass(frozen=True)
class Geometry:
    """How a cloud of N vectors fills its D dimensions."""

    num_vectors: int
    spectrum_D: np.ndarray
    """variance along each principal component, the largest first"""
    participation: Estimate
    """participation ratio: (sum of variances)^2 / sum of their squares; 1 for a line, D for a ball"""
    first_two: Estimate
    """share of the variance in the first 2 principal components"""
    first_three: Estimate
    chance_participation: float
    """of as many vectors of independent normal numbers"""
    chance_three: float
    chance_spectrum_D: np.ndarray

    def sentence(self) -> str:
        D = len(self.spectrum_D)
        three = "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * x for x in self.first_three))
        chance = f"{100 * self.chance_three:.1f} % of random vectors'"
        facts = (
            f"{D} numbers a token, spread like {self.participation.value:.1f} "
            f"[{self.participation.low:.1f}, {self.participation.high:.1f}] equally used dimensions; "
            f"the first 3 principal components hold {three} of the variance"
        )
        if self.first_three.low > 0.9:
            return f"{facts}: it is nearly a {'2D' if self.first_two.low > 0.9 else '3D'} cloud."
        if self.first_three.high < 2 * self.chance_three:
            return f"{facts} ({chance}): a picture in 2D or 3D shows almost nothing of it."
        return f"{facts} ({chance}): a picture in 3D leaves the rest out."


def geometry(vectors_ND: np.ndarray, draws: int = DRAWS // 2, seed: int = 0) -> Geometry:
    """Principal components (Pearson 1901) and participation ratio (Gao et al. 2017, bioRxiv 214262, equation 5), with
    bootstrap intervals over vectors, drawn as `GROUPS` random groups: the products within a group are added up once.

    A sample spans less than the whole, so the ratio is pulled down where N is not far above D: compare
    `chance_participation`, of a sample as large.
    """
    x_ND = np.asarray(vectors_ND, np.float64)
    N, D = x_ND.shape
    spectrum_D = _spectrum(x_ND)
    chance_D = _spectrum(np.random.default_rng(seed).standard_normal((N, D)))
    chance, whole = _summary(chance_D), _summary(spectrum_D)
    drawn = _bootstrap(x_ND, draws, seed)
    # Percentiles would lie beside the value: a sample of a sample spans still less.
    half = 1.96 * drawn.std(0)
    return Geometry(
        N,
        spectrum_D,
        *(Estimate(*map(float, three)) for three in zip(whole, whole - half, whole + half, strict=True)),
        chance_participation=float(chance[0]),
        chance_three=float(chance[2]),
        chance_spectrum_D=chance_D,
    )


def _spectrum(x_ND: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, descending."""
    centered_ND = x_ND - x_ND.mean(0, keepdims=True)
    return np.maximum(np.linalg.eigvalsh(centered_ND.T @ centered_ND / len(x_ND))[::-1], 0)


def _bootstrap(x_ND: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """`_summary` of samples of groups of vectors, (draws, 3), all at once.

    A sample's covariance is a sum over groups, so its trace and the sum of its squares are sums too. Its largest
    eigenvalues are those within the `SPAN` first components of all vectors (Rayleigh and Ritz).
    """
    N, D = x_ND.shape
    x_ND = x_ND - x_ND.mean(0, keepdims=True)
    order_N = np.random.default_rng(seed).permutation(N)
    groups = [x_ND[part].astype(np.float32) for part in np.array_split(order_N, min(GROUPS, N))]
    G = len(groups)
    weights_XG = np.random.default_rng(seed).multinomial(G, np.full(G, 1 / G), draws)
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
    return np.stack(
        [
            variance_X**2 / np.maximum(squares_X, 1e-300),
            largest_XY[:, :2].sum(1) / variance_X,
            largest_XY[:, :3].sum(1) / variance_X,
        ],
        axis=1,
    )


def _summary(spectrum_D: np.ndarray) -> np.ndarray:
    """Participation ratio, and shares of the first 2 and 3."""
    total = max(spectrum_D.sum(), 1e-300)
    ratio = total**2 / max(np.square(spectrum_D).sum(), 1e-300)
    return np.array([ratio, spectrum_D[:2].sum() / total, spectrum_D[:3].sum() / total])


@dataclass(frozen=True)
class Neighbours:
    """The tokens whose embeddings point the most in the direction of one; K of them."""

    piece: str
    id: int
    ids_K: np.ndarray
    pieces: tuple[str, ...]
    cosine_K: np.ndarray
    """after the mean of all embeddings is taken away (Mu and Viswanath 2018, arXiv:1702.01417)"""
    chance: float
    """the cosine that none of the tokens asked for reaches to any other, with 95 %, where `closest_by_chance`"""


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

    def sentence(self) -> str:
        near = [n for n in self.neighbours if n.cosine_K[0] > n.chance]
        if not self.neighbours:
            return self.geometry.sentence()
        if not near:
            return (
                f"{self.geometry.sentence()} No token asked for is shown to lie closer to another than chance would "
                "have it."
            )
        best = max(near, key=lambda n: n.cosine_K[0])
        return (
            f"{self.geometry.sentence()} {len(near)} of {len(self.neighbours)} tokens lie closer to another than "
            f"chance would have it: {best.piece!r} the closest, to {best.pieces[0]!r} (cosine {best.cosine_K[0]:.2f}; "
            f"with shuffled principal components none of all asked reaches {best.chance:.2f}, with 95 %)."
        )


def explain_embeddings(
    embedding_VD: np.ndarray,
    tokenizer: Tokenizer,
    counts_V: np.ndarray | None = None,
    ids: Sequence[int] = (),
) -> Embeddings:
    """Geometry of the embeddings of tokens that occur, a map of the most frequent, and neighbours of `ids`.

    Without `counts_V` all tokens but the special ones count, in the order of their ids.
    """
    embedding_VD = np.asarray(embedding_VD, np.float64)[: tokenizer.vocab_size]
    counts_V = np.ones(len(embedding_VD)) if counts_V is None else counts_V
    kinds_V = kinds_of(tokenizer)
    usual = np.flatnonzero((counts_V > 0) & (kinds_V != KINDS.index("special")))
    used_N = usual[np.argsort(-counts_V[usual], kind="stable")][:MOST]
    x_ND = embedding_VD[used_N]
    centered_ND = x_ND - x_ND.mean(0, keepdims=True)
    on_map = used_N[:SHOWN]
    asked = [i for i in dict.fromkeys(ids) if i in used_N]
    shown_ND = centered_ND[: len(on_map)] - centered_ND[: len(on_map)].mean(0)
    axes_DD = np.linalg.eigh(shown_ND.T @ shown_ND)[1][:, ::-1]
    chance = closest_by_chance(centered_ND, len(asked)) if asked else 1.0
    return Embeddings(
        geometry=geometry(x_ND),
        map_ids_N=on_map,
        map_pieces=tuple(shown(tokenizer, i) for i in on_map),
        map_kinds_N=kinds_V[on_map],
        map_N3=centered_ND[: len(on_map)] @ axes_DD[:, :3],
        neighbours=tuple(_neighbours(int(i), used_N, centered_ND, tokenizer, chance) for i in asked),
    )


def closest_by_chance(centered_ND: np.ndarray, asked: int, draws: int = SHUFFLED, seed: int = 0) -> float:
    """Return the cosine that the closest neighbour of any of `asked` vectors passes in 5 % of tables by chance.

    The null model keeps how much each principal component varies and how its scores are distributed, and gives every
    vector scores of its own choice: each component is shuffled across the vectors (Horn 1965 shuffles variables so).
    Random directions are no such model, since a few components hold much of the variance and draw all cosines apart.
    """
    random = np.random.default_rng(seed)
    axes_DD = np.linalg.eigh(centered_ND.T @ centered_ND)[1]
    scores_ND = (centered_ND @ axes_DD).astype(np.float32)
    closest = np.empty(draws)
    for draw in range(draws):
        random.permuted(scores_ND, axis=0, out=scores_ND)
        lengths_N = np.maximum(np.linalg.norm(scores_ND, axis=1), 1e-12)
        cosine_AN = scores_ND[:asked] @ scores_ND.T / (lengths_N[:asked, None] * lengths_N)
        cosine_AN[np.arange(asked), np.arange(asked)] = -np.inf
        closest[draw] = cosine_AN.max()
    return float(min(1.0, np.sort(closest)[math.ceil(CONFIDENCE * (draws + 1)) - 1]))


def _neighbours(
    own: int, ids_N: np.ndarray, centered_ND: np.ndarray, tokenizer: Tokenizer, chance: float
) -> Neighbours:
    lengths_N = np.maximum(np.linalg.norm(centered_ND, axis=1), 1e-12)
    place = int(np.flatnonzero(ids_N == own)[0])
    cosine_N = centered_ND @ centered_ND[place] / (lengths_N * lengths_N[place])
    cosine_N[place] = -np.inf
    nearest = np.argsort(-cosine_N, kind="stable")[:NEIGHBOURS]
    return Neighbours(
        piece=shown(tokenizer, own),
        id=own,
        ids_K=ids_N[nearest],
        pieces=tuple(shown(tokenizer, i) for i in ids_N[nearest]),
        cosine_K=cosine_N[nearest],
        chance=chance,
    )
