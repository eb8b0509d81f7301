"""Creates the run of tests/compose.sh by stubs of the proto files and waits for its end: submit.py ADDRESS PROTO_FOLDER"""

import json
import sys
import tempfile

import grpc
from grpc_tools import protoc

address, proto = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    files = [f"{proto}/deepcluster/v1/{name}.proto" for name in ("common", "runs")]
    assert protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]) == 0
    sys.path.insert(0, folder)
    from deepcluster.v1 import runs_pb2, runs_pb2_grpc

runs = runs_pb2_grpc.RunsStub(grpc.insecure_channel(address))
spec = runs_pb2.RunSpec(images=".", k=10, epochs=3, image_size=64, batch=32, seed=5, shard_images=8, device="cpu")
run = runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec, request_id="python"), wait_for_ready=True).run
state = None
for update in runs.WatchRun(runs_pb2.WatchRunRequest(run_id=run.run_id)):
    if update.WhichOneof("update") == "event" and update.event.kind == "run":
        state = json.loads(update.event.json)["state"]
assert state == "finished", state
print(run.run_id, state)
