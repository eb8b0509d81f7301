"""Reads a folder with event files and a projection as TensorBoard does, without TensorFlow: tensorboard_reader.py LOGDIR

Prints one JSON object:
{"scalars": {tag: [[step, value], ...]}, "histograms": {tag: [[step, count, min, max], ...]},
 "images": {tag: [[step, width, height, decoded], ...]}, "texts": {tag: [[step, text], ...]},
 "projector": {"tensors": [n, dims], "metadata_rows": n, "sprite": [width, height] or null, "config_ok": bool} or null}
Numbers that are not finite are null.
"""

import io
import json
import math
import pathlib
import sys

from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.projector import projector_config_pb2
from tensorboard.util import tensor_util

logdir = pathlib.Path(sys.argv[1])
LARGEST_SHEET = 8192  # the projector refuses larger ones


def finite(number):
    return number if math.isfinite(number) else None


def read_events():
    everything = {name: 0 for name in (event_accumulator.SCALARS, event_accumulator.HISTOGRAMS, event_accumulator.IMAGES,
                                       event_accumulator.TENSORS)}
    events = event_accumulator.EventAccumulator(str(logdir), size_guidance=everything).Reload()
    tags = events.Tags()
    return {
        "scalars": {tag: [[one.step, finite(one.value)] for one in events.Scalars(tag)] for tag in tags["scalars"]},
        "histograms": {tag: [histogram(one) for one in events.Histograms(tag)] for tag in tags["histograms"]},
        "images": {tag: [image(one) for one in events.Images(tag)] for tag in tags["images"]},
        "texts": {tag: [[one.step, text(one)] for one in events.Tensors(tag)]
                  for tag in tags["tensors"] if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"},
    }


def histogram(event):
    value = event.histogram_value
    assert sum(value.bucket) == value.num, "a histogram whose buckets do not add up"
    assert len(value.bucket) == len(value.bucket_limit) and list(value.bucket_limit) == sorted(value.bucket_limit)
    return [event.step, int(value.num), value.min, value.max]


def image(event):
    try:
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            picture.load()
            decoded = picture.size == (event.width, event.height)
    except OSError:
        decoded = False
    return [event.step, event.width, event.height, decoded]


def text(event):
    return tensor_util.make_ndarray(event.tensor_proto).reshape(-1)[0].decode()


def check_records():
    """EventAccumulator passes over the end of a file that it cannot read; here every byte must be a record's."""
    for path in sorted(logdir.iterdir()):
        if "tfevents" in path.name:
            records = list(RawEventFileLoader(str(path)).Load())
            assert sum(len(record) + 16 for record in records) == path.stat().st_size, f"{path} has bytes of no record"
            assert event_pb2.Event.FromString(records[0]).file_version == "brain.Event:2", f"{path} has no version"


def read_projector():
    path = logdir / "projector_config.pbtxt"
    if not path.is_file():
        return None
    config = text_format.Parse(path.read_text(encoding="utf-8"), projector_config_pb2.ProjectorConfig())
    [embedding] = config.embeddings
    # As the projector's server reads it, and its page the labels: lines without text do not count.
    rows = [[float(cell) for cell in line.split("\t")] for line in lines(embedding.tensor_path)]
    shape = [len(rows), len(rows[0])]
    labels = lines(embedding.metadata_path) if embedding.metadata_path else []
    columns = {line.count("\t") + 1 for line in labels}
    has_header = columns and "\t" in labels[0]
    sheet, sprite_ok = None, True
    if embedding.HasField("sprite"):
        with Image.open(logdir / embedding.sprite.image_path) as picture:
            picture.load()
            sheet = list(picture.size)
        width, height = embedding.sprite.single_image_dim
        places = (sheet[0] // width) * (sheet[1] // height)
        sprite_ok = sheet[0] % width == sheet[1] % height == 0 and places >= len(rows) and max(sheet) <= LARGEST_SHEET
    config_ok = (bool(embedding.tensor_name) and list(embedding.tensor_shape) == shape and sprite_ok
                 and len(columns) <= 1 and all(len(row) == shape[1] for row in rows))
    return {"tensors": shape, "metadata_rows": len(labels) - bool(has_header), "sprite": sheet, "config_ok": config_ok}


def lines(name):
    content = (logdir / name).read_bytes().decode("utf-8")
    return [line for line in content.split("\n") if line.strip()]


check_records()
print(json.dumps({**read_events(), "projector": read_projector()}, allow_nan=False))
