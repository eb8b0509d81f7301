"""Makes evaluation.json: what scikit-learn, scipy and plain references say about small cases of the evaluation.

    pip install numpy scipy scikit-learn faiss-cpu
    python tests/parity/make_evaluation.py
"""

import json
import pathlib
from fractions import Fraction

import faiss
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import KNeighborsClassifier


def agreement(name, labels, classes):
    """Rand index, purity and matched accuracy of the points that both know."""
    labels, classes = np.asarray(labels), np.asarray(classes)
    kept = (labels >= 0) & (classes >= 0)
    table = contingency_matrix(classes[kept], labels[kept])  # classes × clusters
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {
        "name": name,
        "labels": labels.tolist(),
        "classes": classes.tolist(),
        "ari": float(adjusted_rand_score(classes[kept], labels[kept])),
        "purity": float(table.max(axis=0).sum() / table.sum()),
        "matched_accuracy": float(table[rows, columns].sum() / table.sum()),
    }


def agreements(rng):
    def noisy(n, n_classes, n_clusters, share):
        classes = rng.integers(0, n_classes, n)
        labels = np.where(rng.random(n) < share, rng.integers(0, n_clusters, n), (classes * 7 + 3) % n_clusters)
        return labels, classes

    labels, classes = noisy(300, 6, 11, 0.4)
    labels[::17], classes[::23] = -1, -1
    return [
        agreement("more clusters than classes, some skipped", labels, classes),
        agreement("fewer clusters than classes", *noisy(300, 12, 5, 0.5)),
        agreement("as many", *noisy(200, 8, 8, 0.6)),
        agreement("unrelated", *noisy(150, 4, 4, 1.0)),
        # The best match of one cluster is not the best of all: greed gets 10 + 0 = 10 of 28, the optimum 9 + 9.
        agreement("greed loses", [0] * 19 + [1] * 9, [0] * 10 + [1] * 9 + [0] * 9),
    ]


def knn(rng, temperature=0.07, n_classes=5):
    """The weighted vote of Wu et al. 2018 (kNN of NonParametricClassification/test.py): one-hot × exp(sim / τ), summed."""
    bank = rng.normal(size=(400, 16)).astype("float32")
    classes = rng.integers(0, n_classes, 400)
    bank += 0.45 * rng.normal(size=(n_classes, 16)).astype("float32")[classes]
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    cases, by_number = [], 0
    for query in range(12):
        similarities = bank @ bank[query]
        similarities[query] = -1
        order = np.argsort(-similarities, kind="stable")[:20]
        onehot = np.eye(n_classes)[classes[order]]
        votes = (onehot * np.exp(similarities[order].astype("float64") / temperature)[:, None]).sum(0)
        # scikit-learn's classifier with the same weights says the same.
        others = np.arange(len(bank)) != query
        weights = lambda distances: np.exp((1.0 - distances.astype("float64")) / temperature)
        voter = KNeighborsClassifier(20, metric="cosine", weights=weights).fit(bank[others], classes[others])
        assert voter.predict(bank[[query]])[0] == votes.argmax()
        by_number += int(votes.argmax() != onehot.sum(0).argmax())
        cases.append({
            "similarities": [float(value) for value in similarities[order]],
            "neighbours": classes[order].tolist(),
            "class": int(votes.argmax()),
        })
    assert by_number > 0, "weights that never matter test nothing"
    return {"temperature": temperature, "n_classes": n_classes, "cases": cases}


def devkit_ap(scores, truth):
    """VOCevalcls.m of the 2007 devkit, line for line; `truth` 1, -1, or 0 for difficult."""
    order = np.argsort(-scores, kind="stable")
    tp, fp = np.cumsum(truth[order] > 0), np.cumsum(truth[order] < 0)
    with np.errstate(invalid="ignore"):
        recall, precision = tp / (truth > 0).sum(), tp / (fp + tp)
    ap = 0.0
    for t in np.arange(11) / 10:
        reached = precision[recall >= t]
        reached = reached[~np.isnan(reached)]
        ap += (reached.max() if len(reached) else 0.0) / 11
    return float(ap)


def exact_ap(scores, truth):
    """The same with recalls and precisions as fractions."""
    tp, seen, points = 0, 0, []
    for at in np.argsort(-scores, kind="stable"):
        if truth[at] != 0:
            tp, seen = tp + int(truth[at] > 0), seen + 1
            points.append((Fraction(tp, int((truth > 0).sum())), Fraction(tp, seen)))
    best = [max((p for r, p in points if r >= Fraction(t, 10)), default=Fraction(0)) for t in range(11)]
    return float(sum(best) / 11)


def voc(rng):
    cases = []
    for n, positives in [(60, 13), (60, 20), (40, 10), (12, 1)]:
        truth = np.full(n, -1)
        truth[rng.permutation(n)[:positives]] = 1
        truth[rng.choice(np.flatnonzero(truth < 0), n // 10, replace=False)] = 0
        # Rounded, so that some are equal: they stay in the order of the images.
        scores = np.round(rng.normal(size=n) + 0.8 * (truth > 0), 1) + 0.0
        ap = exact_ap(scores, truth)
        assert abs(ap - devkit_ap(scores, truth)) < 1e-12
        cases.append({"scores": scores.tolist(), "truth": truth.tolist(), "ap": ap})
    return cases


def compute_ap(positive, ambiguous, ranked):
    """compute_ap.cpp of the Oxford Buildings, line for line, in doubles."""
    old_recall, old_precision, ap, found, seen = 0.0, 1.0, 0.0, 0, 0
    for image in ranked:
        if image in ambiguous:
            continue
        found += image in positive
        recall, precision = found / len(positive), found / (seen + 1.0)
        ap += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision, seen = recall, precision, seen + 1
    return ap


def oxford(rng):
    cases = []
    for n, positives, junk in [(50, 9, 6), (30, 12, 0), (20, 1, 3)]:
        ranked = rng.permutation(n)
        positive, ambiguous = set(range(positives)), set(range(positives, positives + junk))
        truth = [1 if image in positive else 0 if image in ambiguous else -1 for image in ranked]
        cases.append({"truth": truth, "ap": compute_ap(positive, ambiguous, ranked)})
    return cases


def pic_points(rng):
    """On a grid of 1/128, so that every product and sum is exact and ties are ties: loose groups, copies, two far away whose
    nearest is the other, which is alone as well."""
    groups = rng.integers(-100, 101, (12, 3))
    points = groups[rng.integers(0, 12, 260)] + np.round(rng.normal(size=(260, 3)) * 14).astype(int)
    copies = np.concatenate([points[:20], np.repeat(points[30:31], 11, axis=0)])
    strewn = rng.integers(-128, 129, (7, 3))
    return np.concatenate([points, copies, strewn, [[1024, 1024, 1024], [1024, 1024, 256]]])


def pic(points, sigma=0.2, neighbours=5, iterations=200, alpha=0.001):
    """Power iteration clustering as DeepCluster's release does it, in doubles; copies never are their own neighbours."""
    x = (points / 128).astype("float32")
    n = len(x)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    distances, ids = index.search(x, neighbours + 1)
    own = np.where((ids == np.arange(n)[:, None]).any(1), (ids == np.arange(n)[:, None]).argmax(1), neighbours)
    others = np.arange(neighbours + 1)[None, :] != own[:, None]
    ids, distances = ids[others].reshape(n, neighbours), distances[others].reshape(n, neighbours).astype("float64")
    a = csr_matrix((np.exp(-distances / sigma**2).ravel(), ids.ravel(), neighbours * np.arange(n + 1)), shape=(n, n))
    w = (a + a.T).tocsr()
    w.sort_indices()
    v = np.ones(n) / n
    for _ in range(iterations):
        v = alpha * (w.T @ v) + (1 - alpha) / n
        v /= v.sum()
    up = np.arange(n)
    for i in range(n):
        best = 0.0
        for at in range(w.indptr[i], w.indptr[i + 1]):
            gain = w.data[at] * (v[w.indices[at]] - v[i])
            if gain > best:
                best, up[i] = gain, w.indices[at]
    peaks = up
    while (peaks[peaks] != peaks).any():
        peaks = peaks[peaks]
    single = np.bincount(peaks, minlength=n)[peaks] == 1
    joined = peaks.copy()
    for i in np.flatnonzero(single):
        company = [j for j in ids[i] if not single[j]]
        if company:
            joined[i] = peaks[company[0]]
    _, labels = np.unique(joined, return_inverse=True)
    return {
        "points": points.tolist(),
        "unit": 128,
        "sigma": sigma,
        "neighbours": neighbours,
        "iterations": iterations,
        "singletons": int(single.sum()),
        "labels": labels.tolist(),
    }


def main():
    rng = np.random.default_rng(20)
    cases = {
        "agreement": agreements(rng),
        "knn": knn(rng),
        "voc": voc(rng),
        "oxford": oxford(rng),
        "pic": pic(pic_points(rng)),
    }
    path = pathlib.Path(__file__).with_name("evaluation.json")
    lines = [f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
