"""Distances of queries to a gallery, a few rows at a time: what does not fit in memory never is."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse

from ..errors import ConfigError, DataError

__all__ = ["Distances", "RerankedDistances", "expand_descriptors"]

# Elements of a block of distances: 8 MiB in float32.
BLOCK = 2**21


class Distances:
    """Distances between the descriptors of queries (Q, D) and of a gallery (G, D).

    Args:
        query: Descriptors of the queries.
        gallery: Descriptors of the gallery.
        metric: ``"cosine"``, one minus the cosine of the angle; or ``"euclidean"``.

    Raises:
        ConfigError: If the metric is neither.
        DataError: If widths differ, there is nothing on either side, or a value is not finite.
    """

    def __init__(self, query: torch.Tensor, gallery: torch.Tensor, metric: str = "cosine"):
        if metric not in ("cosine", "euclidean"):
            raise ConfigError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}")
        self.metric = metric
        self.query = self._prepared(query, "queries")
        self.gallery = self.query if gallery is query else self._prepared(gallery, "gallery")
        if query.shape[1] != gallery.shape[1]:
            raise DataError(
                f"descriptors of queries have {query.shape[1]} values and those of the gallery "
                f"{gallery.shape[1]}: compute both with the same model"
            )
        self._norms = None if metric == "cosine" else self.gallery.square().sum(1)

    def _prepared(self, descriptors: torch.Tensor, name: str) -> torch.Tensor:
        descriptors = _check(descriptors, name)
        return F.normalize(descriptors) if self.metric == "cosine" else descriptors

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of images in the gallery."""
        return len(self.query), len(self.gallery)

    @property
    def limit(self) -> float:
        """What no distance exceeds."""
        if self.metric == "cosine":
            return 2.0
        longest = [x.norm(dim=1).max() for x in (self.query, self.gallery)]
        return float(sum(longest)) or 1.0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Distances of some queries to all of the gallery, (stop - start, G)."""
        query = self.query[start:stop]
        products = query @ self.gallery.mT
        if self._norms is None:
            return products.neg_().add_(1).clamp_(0, 2)
        squares = products.mul_(-2).add_(self._norms).add_(query.square().sum(1)[:, None])
        return squares.clamp_(min=0).sqrt_()

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """All rows, in blocks that fit in little memory, each with the queries it is of."""
        count, width = self.shape
        step = max(BLOCK // width, 1)
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start, stop), self.rows(start, stop)


def _check(descriptors: torch.Tensor, name: str) -> torch.Tensor:
    if descriptors.ndim != 2 or not len(descriptors):
        raise DataError(
            f"the {name} must be descriptors (number, width), at least one; got the shape "
            f"{tuple(descriptors.shape)}"
        )
    descriptors = descriptors.float()
    wrong = (~torch.isfinite(descriptors.sum(1))).nonzero()[:, 0]
    if len(wrong):
        raise DataError(
            f"descriptor {int(wrong[0])} of the {name} (and {len(wrong) - 1} more) is not finite: "
            "the model has diverged, or runs in too low a precision"
        )
    return descriptors


def expand_descriptors(
    descriptors: torch.Tensor, database: torch.Tensor, k: int = 5, alpha: float = 3.0
) -> torch.Tensor:
    """Query expansion: each descriptor plus its k nearest of a database, by cosine ** alpha.

    ``alpha=0`` is the average of Chum et al. (ICCV 2007), higher ones that of Radenovic et al.
    (arXiv 1711.02512).

    Args:
        descriptors: Descriptors (N, D), such as those of queries.
        database: Descriptors (G, D), those of the gallery.
        k: Number of neighbours.
        alpha: Exponent of the cosine, which weighs neighbours.

    Returns:
        Normalised descriptors (N, D).
    """
    distances = Distances(descriptors, database)
    k = min(k, len(database))
    expanded = torch.empty_like(distances.query)
    for block, rows in distances.blocks():
        nearest, indices = rows.topk(k, largest=False)
        weights = (1 - nearest).clamp(min=0) ** alpha  # (n, k)
        neighbours = torch.einsum("nk,nkd->nd", weights, distances.gallery[indices])
        expanded[block] = distances.query[block] + neighbours
    return F.normalize(expanded)


class RerankedDistances(Distances):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017): Jaccard distances of encoded neighbours.

    Neighbours are sought among queries and gallery together. Their encodings are sparse, so memory
    grows with the number of images times ``k1``, not with its square.

    Args:
        query: Descriptors of the queries (Q, D).
        gallery: Descriptors of the gallery (G, D).
        metric: Distance of descriptors.
        k1: Neighbours among which reciprocal ones are sought.
        k2: Neighbours whose encodings are averaged.
        original: Share of the distance of descriptors, squared, in the final one (``lambda``).
    """

    def __init__(
        self,
        query: torch.Tensor,
        gallery: torch.Tensor,
        metric: str = "euclidean",
        k1: int = 20,
        k2: int = 6,
        original: float = 0.3,
    ):
        if not 1 <= k2 <= k1 or not 0 <= original <= 1:
            raise ConfigError(
                "re-ranking needs 1 <= k2 <= k1 and original between 0 and 1; got "
                f"k1={k1}, k2={k2}, original={original}"
            )
        super().__init__(query, gallery, metric)
        everything = torch.cat((self.query, self.gallery))
        self._scale, encodings = _encode(Distances(everything, everything, metric), k1, k2)
        self._encoded = encodings[: len(query)]
        self._by_neighbour = encodings[len(query) :].T.tocsr()  # (Q + G, G)
        self.original = original

    @property
    def limit(self) -> float:
        return 1.0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        squares = super().rows(start, stop).square() / self._scale[start:stop, None]
        overlap = torch.from_numpy(_overlaps(self._encoded[start:stop], self._by_neighbour))
        jaccard = 1 - overlap / (2 - overlap)
        return (1 - self.original) * jaccard.to(squares) + self.original * squares


def _encode(distances: Distances, k1: int, k2: int) -> tuple[torch.Tensor, sparse.csr_matrix]:
    """Largest squared distance of each of N images, and encodings (N, N) of their neighbours."""
    count = len(distances.query)
    k1 = min(k1, count - 1)
    half = round(k1 / 2)
    scale, order = [], []
    for _, rows in distances.blocks():
        scale.append(rows.amax(1).square().clamp(min=1e-12))
        order.append(rows.topk(k1 + 1, largest=False).indices)
    scale, order = torch.cat(scale), torch.cat(order).cpu().numpy()
    wide, narrow = (_reciprocal(order[:, : k + 1]) for k in (k1, half))
    # Sets of neighbours whose reciprocal ones are mostly ours, too, join.
    shared = (wide @ narrow.T).multiply(wide)  # members of `narrow` that are in `wide`
    sizes = np.asarray(narrow.sum(1)).ravel()
    shared = shared.tocoo()
    joins = shared.data > 2 / 3 * sizes[shared.col]
    joined = sparse.csr_matrix(
        (np.ones(joins.sum(), np.float32), (shared.row[joins], shared.col[joins])), (count, count)
    )
    members = (wide + joined @ narrow).tocoo()
    weights = np.empty(members.nnz, np.float32)
    for first in range(0, members.nnz, BLOCK // distances.query.shape[1] or 1):
        part = slice(first, first + (BLOCK // distances.query.shape[1] or 1))
        near = _pairs(distances, members.row[part], members.col[part])
        weights[part] = torch.exp(-near.square() / scale[members.row[part]]).cpu().numpy()
    encodings = _normalised(sparse.csr_matrix((weights, (members.row, members.col)), (count,) * 2))
    if k2 > 1:
        k2 = min(k2, order.shape[1])
        nearest = np.full(count * k2, 1 / k2, np.float32), order[:, :k2].ravel()
        average = sparse.csr_matrix((*nearest, np.arange(0, count * k2 + 1, k2)), (count, count))
        encodings = (average @ encodings).tocsr()
    return scale, encodings


def _pairs(distances: Distances, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
    """Distances of single pairs, (n,)."""
    a, b = distances.query[rows], distances.gallery[columns]
    if distances.metric == "cosine":
        return (1 - (a * b).sum(1)).clamp(min=0)
    return (a - b).norm(dim=1)


def _reciprocal(order: np.ndarray) -> sparse.csr_matrix:
    """0/1 matrix (N, N) of those among each other's nearest, given the nearest of each (N, k)."""
    count, k = order.shape
    ones = np.ones(count * k, np.float32)
    near = sparse.csr_matrix((ones, order.ravel(), np.arange(0, count * k + 1, k)), (count,) * 2)
    return near.multiply(near.T).tocsr()


def _normalised(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows divided by their sums."""
    sums = np.asarray(matrix.sum(1)).ravel()
    return sparse.diags(1 / sums).dot(matrix).astype(np.float32).tocsr()


def _overlaps(encoded: sparse.csr_matrix, by_neighbour: sparse.csr_matrix) -> np.ndarray:
    """Sums of the smaller of two encodings, (n, G), of rows (n, N) and of columns (N, G)."""
    entries = encoded.tocoo()
    counts = np.diff(by_neighbour.indptr)[entries.col]
    # Each entry meets the whole row of its neighbour: where those are, one after another.
    ends = np.cumsum(counts)
    offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    places = np.repeat(by_neighbour.indptr[entries.col], counts) + offsets
    smaller = np.minimum(np.repeat(entries.data, counts), by_neighbour.data[places])
    count, width = encoded.shape[0], by_neighbour.shape[1]
    cells = np.repeat(entries.row.astype(np.int64), counts) * width + by_neighbour.indices[places]
    return np.bincount(cells, smaller, count * width).reshape(count, width).astype(np.float32)
