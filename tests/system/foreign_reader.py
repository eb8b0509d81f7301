"""Reads a finished run (200 images, k = 10, AlexNet at 64 pixels) and its exported weights with numpy and safetensors."""

import csv
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

run, exported = map(pathlib.Path, sys.argv[1:])
epoch = run / "epochs" / "0001"
manifest = json.loads((epoch / "epoch.json").read_text())
for name, file in manifest["files"].items():
    assert (run.parent.parent / file["path"]).stat().st_size == file["bytes"], name

labels = np.load(epoch / "labels.npy")
assert labels.dtype == np.int32 and labels.shape == (200,), labels
assert labels.min() >= 0 and labels.max() < 10
distances = np.load(epoch / "distances.npy")
assert distances.dtype == np.float32 and distances.shape == (200,)
assert np.isclose(distances.sum(), manifest["scores"]["kmeans_objective"], rtol=1e-4)
whiten = load_file(epoch / "whiten.safetensors")
centroids = np.load(epoch / "centroids.npy")
dims = centroids.shape[1]
assert centroids.dtype == np.float32 and centroids.shape[0] == 10
assert whiten["mean"].shape == (4096,) and whiten["projection"].shape == (dims, 4096), dims
whitened = np.load(epoch / "whitened.npy")
assert whitened.dtype == np.float16 and whitened.shape == (200, dims), whitened
whitened = whitened.astype(np.float32)
assert np.allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-2)
assert np.allclose(np.square(whitened - centroids[labels]).sum(axis=1), distances, atol=1e-2)

with open(run / "labels.csv", newline="") as table:
    rows = list(csv.DictReader(table))
assert [int(row["cluster"]) for row in rows] == labels.tolist()
assert np.allclose([float(row["distance"]) for row in rows], distances)
with open(run / "images.csv", newline="") as table:
    images = list(csv.DictReader(table))
assert [image["path"] for image in images] == [row["path"] for row in rows]
assert all((image["status"], image["width"]) == ("ok", "64") for image in images)

# PyTorch's names and shapes, as in the original release.
shapes = {
    "features.0.weight": (96, 2, 11, 11), "features.0.bias": (96,), "features.1.running_var": (96,),
    "features.4.weight": (256, 96, 5, 5), "features.8.weight": (384, 256, 3, 3), "features.11.weight": (384, 384, 3, 3),
    "features.14.weight": (256, 384, 3, 3), "classifier.1.weight": (4096, 256), "classifier.4.weight": (4096, 4096),
    "top_layer.weight": (10, 4096), "top_layer.bias": (10,), "sobel.0.weight": (1, 3, 1, 1), "sobel.1.weight": (2, 1, 3, 3),
}
weights, checkpoint = load_file(exported), load_file(epoch / "checkpoint.safetensors")
for name, shape in shapes.items():
    assert weights[name].shape == shape, (name, weights[name].shape)
    assert np.array_equal(weights[name], checkpoint[name]), name
assert np.array_equal(weights["sobel.1.weight"][0, 0], [[1, 0, -1], [2, 0, -2], [1, 0, -1]])
assert np.array_equal(weights["sobel.1.weight"][1, 0], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
assert all(np.isfinite(tensor).all() for tensor in weights.values())
assert not any(name.startswith("optimizer.") for name in weights)
momentum = [name for name in checkpoint if name.startswith("optimizer.")]
assert any("features.0.weight" in name for name in momentum) and not any("top_layer" in name for name in momentum)
before = load_file(run / "epochs" / "0000" / "checkpoint.safetensors")
assert not np.array_equal(before["features.0.weight"], weights["features.0.weight"]), "an epoch of training changed nothing"
print("all is well")
