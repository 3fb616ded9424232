"""Retrieval against definitions by loops, and against scikit-learn."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from visattn.zoo.errors import ConfigError, DataError
from visattn.zoo.reid import distances as blocks
from visattn.zoo.reid.distances import Distances, RerankedDistances, expand_descriptors
from visattn.zoo.reid.evaluation import ReIDMetric
from visattn.zoo.reid.metrics import Labels, nearest, rank, roc

INFINITY = float("inf")


class Given(Distances):
    """Distances as given, in blocks of two queries."""

    def __init__(self, matrix):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float32)

    shape = property(lambda self: tuple(self.matrix.shape))
    limit = property(lambda self: float(self.matrix.max()))

    def rows(self, start, stop):
        return self.matrix[start:stop].clone()

    def blocks(self):
        for start in range(0, len(self.matrix), 2):
            yield slice(start, start + 2), self.rows(start, start + 2)


def random_case(queries=17, images=60, people=6, cameras=3, width=8):
    people_of_query = torch.randint(people, (queries,))
    people_of_image = torch.randint(-1, people, (images,))
    query = Labels(people_of_query, torch.randint(cameras, (queries,)))
    gallery = Labels(people_of_image, torch.randint(cameras, (images,)))
    centres = torch.randn(people + 1, width)
    return (
        centres[query.identities] + torch.randn(queries, width),
        centres[gallery.identities] + torch.randn(images, width),
        query,
        gallery,
    )


def by_loops(matrix, query, gallery):
    """Average precision, mINP and place of the first right image, one query after another."""
    values = []
    for row, person, camera in zip(matrix, query.identities, query.cameras, strict=True):
        ranked = []
        for index in np.argsort(row, kind="stable"):
            same = gallery.identities[index] == person
            if gallery.identities[index] == -1 or (same and gallery.cameras[index] == camera):
                continue
            ranked.append(bool(same))
        places = [place for place, right in enumerate(ranked, 1) if right]
        if not places:
            values.append((np.nan,) * 3)
            continue
        precisions = [(i + 1) / place for i, place in enumerate(places)]
        values.append((np.mean(precisions), len(places) / places[-1], places[0]))
    return np.array(values).T


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [1, 130, 2**20])
def test_rank_is_the_definition(metric, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    query_x, gallery_x, query, gallery = random_case()
    if metric == "cosine":
        matrix = 1 - F.normalize(query_x) @ F.normalize(gallery_x).T
    else:
        matrix = torch.cdist(query_x, gallery_x)
    distances = Distances(query_x, gallery_x, metric)
    torch.testing.assert_close(torch.cat([rows for _, rows in distances.blocks()]), matrix)
    ranking = rank(distances, query, gallery)
    precisions, penalties, first = by_loops(matrix.numpy(), query, gallery)
    np.testing.assert_allclose(ranking.average_precisions, precisions)
    np.testing.assert_allclose(ranking.inverse_negative_penalties, penalties)
    np.testing.assert_allclose(ranking.first_places, first)
    summary = ranking.summary((1, 5))
    assert summary["mAP"] == pytest.approx(100 * np.nanmean(precisions))
    assert summary["rank5"] == pytest.approx(100 * (first[~np.isnan(first)] <= 5).mean())


def test_average_precision_is_that_of_scikit_learn():
    query_x, gallery_x, query, gallery = random_case(cameras=1)
    query.cameras.fill_(9)
    ranking = rank(Distances(query_x, gallery_x), query, gallery)
    used = gallery.identities != -1
    scores = (F.normalize(query_x) @ F.normalize(gallery_x).T)[:, used]
    for person, score, actual in zip(
        query.identities, scores, ranking.average_precisions, strict=True
    ):
        right = gallery.identities[used] == person
        assert actual == pytest.approx(average_precision_score(right, score))


def test_same_camera_is_junk_and_queries_without_another_are_skipped():
    """Three queries, one of which has only matches by its own camera: mAP is over two."""
    query = Labels.of([1, 2, 3], [0, 0, 0])
    gallery = Labels.of([1, 1, 2, 3, 4], [0, 1, 1, 0, 1])
    matrix = [[0.0, 0.3, 0.2, 0.5, 0.6], [0.4, 0.5, 0.1, 0.6, 0.7], [0.5, 0.4, 0.3, 0.0, 0.2]]
    ranking = rank(Given(matrix), query, gallery)
    assert ranking.is_valid.tolist() == [True, True, False]
    # The first query's own camera's image, the nearest, is passed over.
    np.testing.assert_allclose(ranking.average_precisions[:2], [1 / 2, 1])
    assert ranking.summary((1, 2)) == pytest.approx(
        {"mAP": 75, "mINP": 75, "rank1": 50, "rank2": 100}
    )


def test_junk_is_passed_over_and_distractors_are_wrong():
    query = Labels.of([5], [0])
    matrix = [[0.1, 0.2, 0.3]]
    junk = rank(Given(matrix), query, Labels.of([-1, -1, 5], [1, 1, 1]))
    distractors = rank(Given(matrix), query, Labels.of([0, 0, 5], [1, 1, 1]))
    assert (junk.first_places[0], distractors.first_places[0]) == (1, 3)


def test_ties_count_against_the_model():
    ranking = rank(Given(torch.zeros(1, 5)), Labels.of([1]), Labels.of([1, 1, 2, 3, 4]))
    assert ranking.first_places[0] == 4
    assert ranking.average_precisions[0] == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_without_cameras_nothing_is_junk():
    ranking = rank(Given([[0.0, 0.1]]), Labels.of([1]), Labels.of([1, 2]))
    assert ranking.average_precisions[0] == 1


def test_nearest_leaves_junk_out():
    query, gallery = Labels.of([1, 2], [0, 0]), Labels.of([1, 1, 2, -1], [0, 1, 0, 1])
    matrix = [[0.0, 0.2, 0.3, 0.1], [0.1, 0.0, 0.0, 0.2]]
    indices, values = nearest(Given(matrix), query, gallery, k=3)
    assert indices[0, :2].tolist() == [1, 2] and indices[1, :2].tolist() == [1, 0]
    torch.testing.assert_close(values[0], torch.tensor([0.2, 0.3, INFINITY]))


def test_roc_is_that_of_scikit_learn():
    query_x, gallery_x, query, gallery = random_case(queries=40, images=150)
    distances = Distances(query_x, gallery_x)
    curve = roc(distances, query, gallery)
    right = query.identities[:, None] == gallery.identities
    used = (gallery.identities != -1) & ~(right & (query.cameras[:, None] == gallery.cameras))
    right, scores = right[used].numpy(), -distances.rows(0, 40)[used].numpy()
    assert curve.area == pytest.approx(roc_auc_score(right, scores), abs=1e-3)
    false_rates, true_rates, _ = roc_curve(right, scores)
    for rate in (0.01, 0.1, 0.5):
        assert curve.true_rate_at(rate) == pytest.approx(
            true_rates[false_rates <= rate].max(), abs=0.01
        )


def test_more_bins_do_not_change_a_perfect_curve():
    query, gallery = Labels.of([1, 2]), Labels.of([1, 2])
    curve = roc(Given([[0.0, 1.0], [1.0, 0.0]]), query, gallery, bins=4)
    assert curve.area == 1 and curve.true_rate_at(0.0) == 1


def reranked_by_loops(features, queries, k1, k2, original):
    """Zhong et al., section 3, one set after another."""
    squares = torch.cdist(features, features).square()
    squares = (squares / squares.amax(1, keepdim=True)).numpy()
    order = np.argsort(squares, 1, kind="stable")
    count = len(features)

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    wide = [reciprocal(i, k1) for i in range(count)]
    narrow = [reciprocal(i, round(k1 / 2)) for i in range(count)]
    encoded = np.zeros((count, count))
    for i in range(count):
        members = set(wide[i])
        for j in wide[i]:
            if len(narrow[j] & wide[i]) > 2 / 3 * len(narrow[j]):
                members |= narrow[j]
        for j in members:
            encoded[i, j] = np.exp(-squares[i, j])
        encoded[i] /= encoded[i].sum()
    encoded = np.stack([encoded[order[i, :k2]].mean(0) for i in range(count)])
    final = np.zeros((queries, count - queries))
    for i in range(queries):
        for j in range(queries, count):
            smaller = np.minimum(encoded[i], encoded[j]).sum()
            larger = np.maximum(encoded[i], encoded[j]).sum()
            jaccard = 1 - smaller / larger
            final[i, j - queries] = (1 - original) * jaccard + original * squares[i, j]
    return final


@pytest.mark.parametrize(
    ("k1", "k2", "original", "block"), [(20, 6, 0.3, 2**20), (7, 1, 0.0, 100), (90, 3, 0.5, 4096)]
)
def test_reranking_is_the_definition(k1, k2, original, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    query_x, gallery_x, *_ = random_case()
    actual = RerankedDistances(query_x, gallery_x, k1=k1, k2=k2, original=original)
    expected = reranked_by_loops(
        torch.cat((query_x, gallery_x)), len(query_x), min(k1, 76), k2, original
    )
    actual = torch.cat([rows for _, rows in actual.blocks()])
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_reranking_helps_where_identities_form_groups():
    query_x, gallery_x, query, gallery = random_case(queries=60, images=300, width=12)
    plain = rank(Distances(query_x, gallery_x), query, gallery).summary()
    again = rank(RerankedDistances(query_x, gallery_x), query, gallery).summary()
    assert again["mAP"] > plain["mAP"] + 1


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_query_expansion_is_the_definition(alpha):
    query_x, gallery_x, *_ = random_case()
    expected = []
    images = F.normalize(gallery_x)
    for x in F.normalize(query_x):
        near = sorted(range(len(images)), key=lambda i, x=x: -float(x @ images[i]))[:4]
        total = x + sum(float(x @ images[i]) ** alpha * images[i] for i in near)
        expected.append(total / total.norm())
    actual = expand_descriptors(query_x, gallery_x, k=4, alpha=alpha)
    torch.testing.assert_close(actual, torch.stack(expected))


def samples(query_x, gallery_x, query, gallery):
    for xs, labels, is_query in ((query_x, query, True), (gallery_x, gallery, False)):
        for i, x in enumerate(xs):
            yield {
                "descriptor": x,
                "identity": int(labels.identities[i]),
                "camera": int(labels.cameras[i]),
                "is_query": is_query,
                "path": f"{'query' if is_query else 'gallery'}/{i}.jpg",
            }


def evaluate(case, **kwargs):
    metric = ReIDMetric(**kwargs)
    everything = list(samples(*case))
    metric.process({}, everything[:30])
    metric.process({}, everything[30:])
    return metric.evaluate(len(everything))


def test_metric_gives_percent_of_what_was_ranked():
    case = random_case()
    expected = rank(Distances(*case[:2]), *case[2:]).summary()
    actual = evaluate(case)
    assert actual == pytest.approx({f"reid/{key}": value for key, value in expected.items()})
    without = evaluate(case, use_cameras=False)
    assert without["reid/mAP"] != pytest.approx(actual["reid/mAP"])


def test_metric_reranks_expands_and_gives_the_curve():
    case = random_case(queries=60, images=300)
    plain = evaluate(case, false_rates=(0.01,))
    assert 0 < plain["reid/tpr@fpr=0.01"] < 100 and plain["reid/auc"] > 60
    expanded = expand_descriptors(*case[:2], k=3)
    gallery = expand_descriptors(case[1], case[1], k=3)
    again = rank(RerankedDistances(expanded, gallery, "cosine", k1=10), *case[2:])
    default = evaluate(case, rerank=True, query_expansion=True)
    assert default["reid/mAP"] != pytest.approx(plain["reid/mAP"])
    actual = evaluate(
        case, rerank={"k1": 10}, query_expansion={"k": 3}, expand_gallery=True, ranks=(1,)
    )
    assert actual["reid/mAP"] == pytest.approx(again.summary()["mAP"])


def test_metric_writes_ranked_lists(tmp_path):
    case = random_case(queries=5)
    metrics = evaluate(case, out_file=str(tmp_path / "out" / "lists.json"), list_length=7)
    content = json.loads((tmp_path / "out" / "lists.json").read_text())
    assert content["metrics"]["mAP"] == pytest.approx(metrics["reid/mAP"])
    ranking = rank(Distances(*case[:2]), *case[2:])
    assert [query["path"] for query in content["queries"]] == [f"query/{i}.jpg" for i in range(5)]
    for query, first in zip(content["queries"], ranking.first_places, strict=True):
        ranked = query["ranked"]
        assert len(ranked) == 7
        assert [r["distance"] for r in ranked] == sorted(r["distance"] for r in ranked)
        assert not any(
            r["identity"] == -1
            or (r["identity"] == query["identity"] and r["camera"] == query["camera"])
            for r in ranked
        )
        rights = [place for place, r in enumerate(ranked, 1) if r["right"]]
        assert (rights[0] if rights else 8) == min(first, 8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Distances(torch.ones(2, 3), torch.ones(2, 4)), DataError, "have 3 values and"),
        (lambda: Distances(torch.ones(0, 3), torch.ones(2, 3)), DataError, "at least one"),
        (
            lambda: Distances(torch.ones(1, 3), torch.tensor([[0.0, 1, 2], [3, float("nan"), 1]])),
            DataError,
            "descriptor 1 of the gallery .* is not finite",
        ),
        (lambda: Distances(torch.ones(2, 3), torch.ones(2, 3), "l1"), ConfigError, "metric must"),
        (
            lambda: RerankedDistances(torch.ones(2, 3), torch.ones(2, 3), k1=3, k2=6),
            ConfigError,
            "1 <= k2 <= k1",
        ),
        (lambda: ReIDMetric(expand_gallery=True), ConfigError, "query_expansion"),
        (
            lambda: rank(Given([[0.0]]), Labels.of([1, 2]), Labels.of([1])),
            DataError,
            "1 queries have 2 identities",
        ),
        (
            lambda: rank(Given([[0.0]]), Labels.of([1], [0]), Labels.of([1])),
            DataError,
            "cameras of both",
        ),
        (
            lambda: rank(Given([[0.0]]), Labels.of([1], [0]), Labels.of([1], [0])).summary(),
            DataError,
            "none of the 1 queries has a right image",
        ),
        (lambda: roc(Given([[1.0]]), Labels.of([1]), Labels.of([1])), DataError, "pairs of"),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_test_without_queries_is_refused():
    case = random_case()
    metric = ReIDMetric()
    metric.process({}, [s for s in samples(*case) if not s["is_query"]])
    with pytest.raises(DataError, match="0 queries and 60 images"):
        metric.evaluate(60)
