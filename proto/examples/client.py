"""Starts a sandbox and shows its output. Needs grpcio and grpcio-tools; the wire types are made by

    python -m grpc_tools.protoc -I proto/proto --python_out=. --grpc_python_out=. fastpath.proto

Run it as root or as a member of the group fsb: they may use the socket. Over TCP (`fsb-ctl local up --tcp`) the channel is
grpc.insecure_channel("localhost:9090"), and every call shows a token: metadata=[("authorization", "Bearer TOKEN")], with
one of /run/fast-sandbox/tokens.
"""
import grpc, fastpath_pb2 as pb, fastpath_pb2_grpc as api

# Left alone, grpcio sends the socket's path as the authority, which HTTP/2 servers refuse.
options = [("grpc.default_authority", "localhost")]
stub = api.FastPathServiceStub(grpc.insecure_channel("unix:/run/fast-sandbox/controller.sock", options))
made = stub.CreateSandbox(pb.CreateRequest(image="busybox", command=["echo", "hello from", "python"]))
print(made.sandbox_id, "on", made.agent_pod)
for chunk in stub.Logs(pb.LogsRequest(sandbox_id=made.sandbox_id, follow=True)):
    print(*(line.text.decode() for line in chunk.lines))
stub.DeleteSandbox(pb.DeleteRequest(sandbox_id=made.sandbox_id))
