"""Starts a sandbox and shows its output. Needs grpcio and grpcio-tools; the wire types are made by

    python -m grpc_tools.protoc -I proto/proto --python_out=. --grpc_python_out=. fastpath.proto
"""
import grpc, fastpath_pb2 as pb, fastpath_pb2_grpc as api

# Over the unix socket, grpcio needs options=[("grpc.default_authority", "localhost")]: left alone, it sends the path as
# the authority, which HTTP/2 servers refuse.
stub = api.FastPathServiceStub(grpc.insecure_channel("localhost:9090"))
made = stub.CreateSandbox(pb.CreateRequest(image="busybox", command=["echo", "hello from", "python"]))
print(made.sandbox_id, "on", made.agent_pod)
for chunk in stub.Logs(pb.LogsRequest(sandbox_id=made.sandbox_id, follow=True)):
    print(*(line.text.decode() for line in chunk.lines))
stub.DeleteSandbox(pb.DeleteRequest(sandbox_id=made.sandbox_id))
