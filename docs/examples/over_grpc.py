"""A first client over gRPC, live. Its code is generated from the proto files:

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I schema/proto --python_out=. --grpc_python_out=. schema/proto/chappe/v1/*.proto
"""

import json
import os
import queue
import sys
import time
import urllib.request
import uuid

import grpc

from chappe.v1 import chappe_pb2, chappe_pb2_grpc, realtime_pb2, realtime_pb2_grpc


def uuid7():
    """A message's id, made before the first attempt: sent twice, it is one message."""
    bits = bytearray(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))
    bits[6] = bits[6] & 15 | 0x70
    bits[8] = bits[8] & 63 | 128
    return str(uuid.UUID(bytes=bytes(bits)))


def token(url, user):
    """On loopback the server gives a token to whoever asks; elsewhere your own service signs them."""
    body = json.dumps({"user": user}).encode()
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/dev/tokens", body, {"content-type": "application/json"})) as answer:
        return json.load(answer)["token"]


def main(url):
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        metadata = [("authorization", "Bearer " + token(url, "ada"))]

        # Live: what the client says goes into a queue, what the server says comes out of the stream.
        said = queue.Queue()
        stream = realtime_pb2_grpc.RealtimeStub(channel).Connect(iter(said.get, None), metadata=metadata)
        print(f"the server says {next(stream).WhichOneof('payload')}")
        said.put(realtime_pb2.ClientFrame(id=1, connect=realtime_pb2.Connect()))
        print(f"connected as {next(stream).connected.user}")

        # Everything else may be asked on the stream too, or with calls of their own.
        conversations = chappe_pb2_grpc.ConversationsStub(channel)
        direct = chappe_pb2.ConversationCreateRequest(kind=chappe_pb2.CONVERSATION_KIND_DIRECT)
        setattr(direct, "with", "bob")
        conversation = conversations.Create(direct, metadata=metadata).conversation.id
        message = chappe_pb2.MessageSendRequest(conversation=conversation, client_msg_id=uuid7(), body='{"text":"bonjour"}')
        sent = chappe_pb2_grpc.MessagesStub(channel).Send(message, metadata=metadata)
        print(f"sent as {sent.seq}")
        for frame in stream:
            if frame.event.event == "message.new":
                print(f"{frame.event.seq} {frame.event.sender}: {json.loads(frame.event.data.body)['text']}")
                break

        # A refusal has a status, and one error object in its details.
        try:
            conversations.Get(chappe_pb2.ConversationGetRequest(conversation=str(uuid.uuid4())), metadata=metadata)
        except grpc.RpcError as refusal:
            print(f"refused: {refusal.code().name}")
        stream.cancel()


main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
