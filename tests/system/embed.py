"""Embeds two images by stubs of the proto files: embed.py ADDRESS PROTO_FOLDER RUN IMAGES_ROOT IMAGE OTHER

IMAGES_ROOT is that of the services, and both images lie below it. One goes as bytes and one by its path; unary and in a stream.
"""

import pathlib
import sys
import tempfile

import grpc
import numpy as np
from grpc_tools import protoc

address, proto, run, root, *images = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    files = [f"{proto}/deepcluster/v1/{name}.proto" for name in ("common", "runs", "inference")]
    assert protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]) == 0
    sys.path.insert(0, folder)
    from deepcluster.v1 import inference_pb2, inference_pb2_grpc

inference = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(address))
first, second = (pathlib.Path(image) for image in images)
both = [
    inference_pb2.InputImage(id="first", content=first.read_bytes()),
    inference_pb2.InputImage(id="second", path=bytes(second.relative_to(root))),
]


def embedding(answer):
    assert answer.WhichOneof("outcome") == "embedding", answer
    return np.array(answer.embedding.values, np.float32)


plain = inference.Embed(inference_pb2.InferenceEmbedRequest(run_id=run, images=both), wait_for_ready=True)
assert [answer.id for answer in plain.images] == ["first", "second"]
assert all(embedding(answer).shape == (4096,) and np.isfinite(embedding(answer)).all() for answer in plain.images)

pinned = inference_pb2.InferenceEmbedRequest(run_id=run, epoch=plain.epoch, whiten=True, images=both)
whitened = [embedding(answer) for answer in inference.Embed(pinned).images]
assert all(abs(np.linalg.norm(values) - 1) < 1e-5 for values in whitened)

messages = [
    inference_pb2.InferenceEmbedStreamRequest(run_id=run, epoch=plain.epoch, whiten=True, images=both[:1]),
    inference_pb2.InferenceEmbedStreamRequest(images=both[1:]),
]
streamed = {}
for message in inference.EmbedStream(iter(messages)):
    assert message.epoch == plain.epoch
    streamed.update({answer.id: embedding(answer) for answer in message.images})
for name, values in zip(("first", "second"), whitened):
    assert np.abs(streamed[name] - values).max() < 1e-2, name

try:
    inference.Embed(inference_pb2.InferenceEmbedRequest(run_id="run-9999", images=both))
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND and "run-9999" in error.details()
else:
    raise AssertionError("a run that is not there has embedded images")
print("two images are embedded")
