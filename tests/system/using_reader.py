"""Reads what users get from a finished run of demo pictures (200 images, k = 10, AlexNet at 64 pixels, two epochs):

using_reader.py weights RUN LAST FIRST          weights of epochs 1 and 0, in PyTorch where it is there
using_reader.py features RUN WEIGHTS SEEN OURS    features of what the first layer sees, in PyTorch where it is there
using_reader.py clusters RUN MODEL CLUSTERS     clusters of all images by an ONNX model, as onnx_reader.py stores them
using_reader.py neighbours RUN PICTURES FOUND   what `neighbours` printed, seven for each image
"""

import csv
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

what, *paths = sys.argv[1:]
run, *paths = map(pathlib.Path, paths)


def rows(path):
    with open(path, newline="") as table:
        return list(csv.DictReader(table))


def weights(last, first):
    for path, epoch in (last, "0001"), (first, "0000"):
        exported, checkpoint = load_file(path), load_file(run / "epochs" / epoch / "checkpoint.safetensors")
        wanted = {name for name in checkpoint if not name.startswith("optimizer.")}
        assert set(exported) == wanted, set(exported) ^ wanted
        assert all(np.array_equal(exported[name], checkpoint[name]) for name in wanted), epoch
    network = in_pytorch(last)
    if network is None:
        print("without PyTorch")


def in_pytorch(weights):
    """AlexNet behind the Sobel filter with exported weights; None where PyTorch is not installed."""
    try:
        from torch import nn
        from safetensors.torch import load_file as load_tensors
    except ImportError:
        return None

    def conv(i, o, kernel, stride=1, padding=0):
        return [nn.Conv2d(i, o, kernel, stride, padding), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

    tensors = load_tensors(weights)
    network = nn.Module()
    network.features = nn.Sequential(
        *conv(2, 96, 11, 4, 2), nn.MaxPool2d(3, 2), *conv(96, 256, 5, 1, 2), nn.MaxPool2d(3, 2),
        *conv(256, 384, 3, 1, 1), *conv(384, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), nn.MaxPool2d(3, 2),
    )
    inner, outer = tensors["classifier.1.weight"].shape[::-1]
    network.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(0.5), nn.Linear(outer, outer))
    body = {name: tensor for name, tensor in tensors.items() if name.startswith(("features.", "classifier."))}
    network.load_state_dict(body)
    return network.eval()


def features(weights, seen, ours):
    network = in_pytorch(weights)
    if network is None:
        print("without PyTorch")
        return
    import torch

    with torch.no_grad():
        theirs = network.classifier(network.features(torch.from_numpy(np.load(seen))).flatten(1)).numpy()
    ours = np.load(ours)
    off, largest = np.abs(theirs - ours).max(), np.abs(ours).max()
    assert off <= 1e-4 * largest, (off, largest)
    print(f"PyTorch: {off:e} off, the largest is {largest}")


def clusters(model, found):
    import onnxruntime

    about = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    expected = {"run": run.name, "epoch": "1", "network_epoch": "0", "input": "pixels", "image_size": "64"}
    assert about == expected, about
    found, labels = np.load(found), rows(run / "labels.csv")
    same = found["cluster"] == [int(label["cluster"]) for label in labels]
    assert same.mean() >= 0.97, same.mean()
    off = np.abs(found["distance"] - [float(label["distance"]) for label in labels])[same]
    assert np.median(off) < 1e-3 and off.max() < 5e-2, (np.median(off), off.max())


def neighbours(pictures, found):
    whitened = np.load(run / "epochs" / "0001" / "whitened.npy").astype(np.float32)
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    numbers = {image["path"]: int(image["index"]) for image in rows(run / "images.csv")}
    found = rows(found)
    for first in range(0, len(found), 7):
        of_one = found[first : first + 7]
        query = str(pathlib.Path(of_one[0]["query"]).relative_to(pictures))
        assert len({row["query"] for row in of_one}) == 1 and [int(row["rank"]) for row in of_one] == list(range(1, 8))
        assert of_one[0]["path"] == query and float(of_one[0]["similarity"]) > 0.98, of_one[0]
        told = np.array([float(row["similarity"]) for row in of_one])
        listed = [numbers[row["path"]] for row in of_one]
        assert len(set(listed)) == 7 and (np.diff(told) <= 0).all(), told
        cosines = whitened @ whitened[numbers[query]]
        # The same ones in the same order, but for those that are as near as rounding is.
        assert np.allclose(cosines[listed], told, atol=1e-2), (cosines[listed], told)
        assert np.allclose(np.sort(cosines)[::-1][:7], told, atol=1e-2), told


{"weights": weights, "features": features, "clusters": clusters, "neighbours": neighbours}[what](*paths)
print("all is well")
