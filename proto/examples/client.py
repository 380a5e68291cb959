"""Starts a sandbox and shows it. Needs grpcio and grpcio-tools; the wire types are made by

    python -m grpc_tools.protoc -I proto/proto --python_out=. --grpc_python_out=. fastpath.proto
"""
import grpc, fastpath_pb2 as pb, fastpath_pb2_grpc as api

stub = api.FastPathServiceStub(grpc.insecure_channel("unix:/run/fast-sandbox/controller.sock"))
made = stub.CreateSandbox(pb.CreateRequest(image="busybox", args=["echo", "hello from", "python"]))
print(made.sandbox_id, "on", made.agent_pod)
for chunk in stub.Logs(pb.LogsRequest(sandbox_id=made.sandbox_id, follow=True)):
    print(*(line.text.decode() for line in chunk.lines))
stub.DeleteSandbox(pb.DeleteRequest(sandbox_id=made.sandbox_id))
