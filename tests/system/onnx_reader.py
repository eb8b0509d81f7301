"""Runs a model with onnxruntime: onnx_reader.py MODEL.onnx IMAGES.npy OUT_FEATURES.npy [OUT_CLUSTERS.npy]

IMAGES are f32 [n, 3, side, side], n at least 3 (2 channels for a model that takes the Sobel filter's output). OUT_FEATURES
become f32 [n, width], OUT_CLUSTERS a structured array [n] of "cluster" (int64) and "distance" (f32).
"""

import sys

import numpy as np
import onnxruntime

model, images, out_features, *out_clusters = sys.argv[1:]
try:
    import onnx
except ImportError:
    onnx = None
if onnx:
    opened = onnx.load(model)
    onnx.checker.check_model(opened, full_check=True)
    versions = {opset.domain: opset.version for opset in opened.opset_import}
    assert versions[""] >= 17, versions

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
images = np.load(images)
assert images.dtype == np.float32 and images.ndim == 4 and len(images) >= 3, (images.dtype, images.shape)
(taken,) = session.get_inputs()
assert taken.name == "images" and taken.type == "tensor(float)", taken
assert taken.shape[0] == "n" and taken.shape[1:] == list(images.shape[1:]), (taken.shape, images.shape)
names = [given.name for given in session.get_outputs()]
assert names == ["features", "cluster", "distance"][: 3 if out_clusters else 1], names
assert session.get_modelmeta().custom_metadata_map["image_size"] == str(images.shape[2])

# Two batches of different sizes: nothing in the model may depend on how many images there are.
cut = len(images) // 3
batches = [session.run(names, {"images": batch}) for batch in (images[:cut], images[cut:])]
features, *clusters = (np.concatenate(parts) for parts in zip(*batches))
assert features.dtype == np.float32 and features.shape == (len(images), session.get_outputs()[0].shape[1]), features.shape
assert np.isfinite(features).all()
np.save(out_features, features)
if out_clusters:
    cluster, distance = clusters
    assert cluster.dtype == np.int64 and distance.dtype == np.float32, (cluster.dtype, distance.dtype)
    assert cluster.shape == distance.shape == (len(images),), (cluster.shape, distance.shape)
    together = np.empty(len(images), dtype=[("cluster", np.int64), ("distance", np.float32)])
    together["cluster"], together["distance"] = cluster, distance
    np.save(out_clusters[0], together)
print(f"onnxruntime {onnxruntime.__version__} ran {len(images)} images")
