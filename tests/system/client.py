"""Two foreign clients of a coordinator: client.py ADDRESS PROTO_FOLDER IMAGES

One has stubs made of the proto files, the other learns everything by reflection.
"""

import sys
import tempfile

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

address, proto, images = sys.argv[1:]
channel = grpc.insecure_channel(address)


def details(error):
    """The google.rpc details of a failed call, by their type."""
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    found = {}
    for detail in status.details:
        for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


def with_stubs():
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{proto}/deepcluster/v1/{name}.proto" for name in ("common", "runs")]
        assert protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]) == 0
        sys.path.insert(0, folder)
        from deepcluster.v1 import runs_pb2, runs_pb2_grpc

    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    runs = runs_pb2_grpc.RunsStub(channel)
    spec = runs_pb2.RunSpec(images=images, k=10, epochs=3, image_size=64, batch=32, seed=5, device="cpu", shard_images=64)
    create = runs_pb2.CreateRunRequest(spec=spec, request_id="python-1", labels={"from": "python"})
    run = runs.CreateRun(create).run
    assert run.n_images == 200 and run.labels["from"] == "python"
    assert runs.CreateRun(create).run.run_id == run.run_id

    watch = runs.WatchRun(runs_pb2.WatchRunRequest(run_id=run.run_id))
    kinds = []
    for update in watch:
        if update.WhichOneof("update") == "event":
            assert update.event.number == len(kinds)
            kinds.append(update.event.kind)
            if update.event.kind == "epoch":
                break
    watch.cancel()
    assert kinds[0] == "run" and "phase" in kinds
    paused = runs.PauseRun(runs_pb2.PauseRunRequest(run_id=run.run_id)).run
    assert paused.state == runs_pb2.RUN_STATE_PAUSED
    later = runs.WatchRun(runs_pb2.WatchRunRequest(run_id=run.run_id, from_event=len(kinds)))
    event = next(update.event for update in later if update.WhichOneof("update") == "event")
    assert event.number == len(kinds), "a watch goes on from any event"
    later.cancel()
    resumed = runs.ResumeRun(runs_pb2.ResumeRunRequest(run_id=run.run_id)).run
    # Nothing else runs: its turn may have come before the answer was written.
    assert resumed.state in (runs_pb2.RUN_STATE_QUEUED, runs_pb2.RUN_STATE_RUNNING)
    cancelled = runs.CancelRun(runs_pb2.CancelRunRequest(run_id=run.run_id)).run
    assert cancelled.state == runs_pb2.RUN_STATE_CANCELLED
    listed = runs.ListRuns(runs_pb2.ListRunsRequest(labels={"from": "python"})).runs
    assert [one.run_id for one in listed] == [run.run_id]

    wrong = runs_pb2.RunSpec(images=images, k=10, batch=1, image_size=10)
    try:
        runs.CreateRun(runs_pb2.CreateRunRequest(spec=wrong))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        fields = [violation.field for violation in details(error)["BadRequest"].field_violations]
        assert fields == ["spec.image_size", "spec.batch"], fields
    else:
        raise AssertionError("a wrong spec was taken")


def by_reflection():
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "deepcluster.v1.Runs" in database.get_services()
    method = DescriptorPool(database).FindServiceByName("deepcluster.v1.Runs").FindMethodByName("ListRuns")
    question, answer = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    call = channel.unary_unary(
        "/deepcluster.v1.Runs/ListRuns", request_serializer=question.SerializeToString, response_deserializer=answer.FromString
    )
    runs = json_format.MessageToDict(call(question(page_size=10)))["runs"]
    assert [(run["runId"], run["state"]) for run in runs] == [("run-0001", "RUN_STATE_CANCELLED")], runs


with_stubs()
by_reflection()
print("both clients are content")
