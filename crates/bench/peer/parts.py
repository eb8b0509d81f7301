"""The parts of the peer that `make bench` compares with: decoding and views by Pillow and torchvision on one core, PCA and
k-means by the faiss-cpu wheel on the data that our benches left. Prints one JSON object.

    python parts.py [--photos FOLDER] --data FOLDER --threads N
"""
import argparse
import json
import pathlib
import time

import faiss
import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

p = argparse.ArgumentParser()
p.add_argument("--photos")
p.add_argument("--data", required=True)
p.add_argument("--threads", type=int, required=True)
a = p.parse_args()
out = {}

if a.photos:
    torch.set_num_threads(1)
    photos = sorted(path for path in pathlib.Path(a.photos).rglob("*") if path.is_file())
    norm = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    views = {
        "center": T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), norm]),
        "random": T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), norm]),
    }
    for name, view in views.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for path in photos:
                view(Image.open(path).convert("RGB"))
            times.append(time.perf_counter() - start)
        out[f"{name}_s"] = sorted(times)[1]

faiss.omp_set_num_threads(a.threads)
data = pathlib.Path(a.data)


def kmeans(x):
    clustering = faiss.Clustering(x.shape[1], 1000)
    clustering.seed, clustering.niter, clustering.max_points_per_centroid = 7, 20, 10_000_000
    index = faiss.IndexFlatL2(x.shape[1])
    clustering.train(x, index)
    return index


if (data / "points.npy").exists():
    points = np.load(data / "points.npy")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        index = kmeans(points)
        times.append(time.perf_counter() - start)
    out["kmeans_s"] = sorted(times)[1]
    out["objective"] = float(index.search(points, 1)[0].astype(np.float64).sum())
    features = np.load(data / "features.npy")
    start = time.perf_counter()
    mat = faiss.PCAMatrix(features.shape[1], 256, -0.5)
    mat.train(features)
    x = mat.apply(features)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    kmeans(x)
    out["pca_kmeans_s"] = time.perf_counter() - start
print(json.dumps(out))
