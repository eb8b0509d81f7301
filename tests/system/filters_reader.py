"""Looks by numpy alone for the images that excite filters of conv1 most: filters_reader.py RUN IMAGES FILTERS_JSONL

RUN is a run of AlexNet at 64 pixels with two epochs; FILTERS_JSONL is what `visualize filters --json` said of it.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

run, images = map(pathlib.Path, sys.argv[1:3])
said = [json.loads(line) for line in pathlib.Path(sys.argv[3]).read_text().splitlines()]
weights = load_file(run / "epochs" / "0001" / "checkpoint.safetensors")
filters = [one["filter"] for one in said]

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
SOBEL = np.float32([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]])


def windows(maps, kernel, stride, padding):
    """[n, c, rows, columns, kernel, kernel]"""
    padded = np.pad(maps, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]


def activations(pixels):
    """Of RGB bytes [n, 64, 64, 3] the maps of the filters behind the rectifier, [n, filters, 15, 15]."""
    grey = ((np.float32(pixels) / 255 - MEAN) / STD).mean(axis=3)[:, None]
    edges = np.einsum("ncyxij,kij->nkyx", windows(grey, 3, 1, 1), SOBEL)
    maps = np.einsum("ncyxij,kcij->nkyx", windows(edges, 11, 4, 2), weights["features.0.weight"][filters], optimize=True)

    def of(name):
        return weights[name][filters][:, None, None]

    maps = maps + of("features.0.bias")
    maps = (maps - of("features.1.running_mean")) / np.sqrt(of("features.1.running_var") + 1e-5)
    return np.maximum(maps * of("features.1.weight") + of("features.1.bias"), 0)


def view(path):
    """The centre of the image at 73 pixels."""
    image = Image.open(path).convert("RGB")
    assert image.size == (64, 64), image.size
    return np.asarray(image.resize((73, 73), Image.Resampling.BILINEAR))[4:68, 4:68]


paths = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
maps = activations(np.stack([view(images / path) for path in paths]))
peaks, means = maps.max(axis=(2, 3)), maps.mean(axis=(2, 3))
shown = json.loads((run / "visualize" / "filters.json").read_text())
assert shown["layer"] == "conv1" and len(shown["filters"]) == len(said)
for at, (one, listed) in enumerate(zip(said, shown["filters"])):
    assert {key: one[key] for key in ("filter", "top", "ascent", "sheet")} == listed, listed
    peak = peaks[:, at]
    # Pixels differ by a level now and then, since resizing rounds in its own way.
    tolerance = 0.02 * peak.max()
    top = peak[[paths.index(path) for path in one["top"]]]
    assert len(set(one["top"])) == 9
    assert np.allclose(top, one["activations"], atol=tolerance), (top, one["activations"])
    assert np.allclose(top, np.sort(peak)[::-1][:9], atol=tolerance), (top, np.sort(peak)[::-1][:9])
    picture = np.asarray(Image.open(run / "visualize" / one["ascent"]))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8, picture.shape
    excited = activations(picture[None]).mean(axis=(2, 3))[0, at]
    assert np.isclose(excited, one["after"], rtol=1e-3), (excited, one["after"])
    assert excited > means[:, at].mean(), f"filter {one['filter']}: {excited} on the picture, {means[:, at].mean()} on images"
    sheet = Image.open(run / "visualize" / one["ascent"].replace(".png", "-sheet.png"))
    assert sheet.size == (384, 192), sheet.size
print("all is well")
