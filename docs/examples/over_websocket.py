"""A first client over a WebSocket: it connects, hears what happens, and says something (`pip install websockets`)."""

import json
import os
import sys
import time
import urllib.request
import uuid

from websockets.sync.client import connect


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
    with connect(url.replace("http", "ws", 1) + "/v1/ws") as socket:
        numbers = iter(range(1, 1000))

        def frames():
            while True:
                # Several frames may share one message.
                for line in socket.recv(timeout=60).splitlines():
                    yield json.loads(line)

        heard = frames()

        def ask(operation, arguments):
            """The answer to a request; what comes before it is shown."""
            number = next(numbers)
            socket.send(json.dumps({"id": number, operation: arguments}))
            for frame in heard:
                if frame.get("id") == number:
                    if "error" in frame:
                        raise SystemExit(frame["error"])
                    return frame["ok"]
                show(frame)

        def show(frame):
            if frame.get("event") == "message.new":
                print(f"{frame['seq']} {frame['sender']}: {frame['data']['body']['text']}")

        hello = next(heard)["hello"]
        print(f"the server says hello; positions are of generation {hello['generation'] and 'known'}")
        ask("connect", {"token": token(url, "ada"), "device": "example"})
        conversation = ask("conversation.create", {"kind": "direct", "with": "bob"})["conversation"]["id"]
        sent = ask("message.send", {"conversation": conversation, "client_msg_id": uuid7(), "body": {"text": "bonjour"}})
        print(f"sent as {sent['seq']}")
        # One's own messages come back as events, before or after the answer.
        page = ask("event.list", {"conversation": conversation, "after": sent["seq"] - 1})
        print(f"the log has {page['events'][0]['event']} at {page['events'][0]['seq']}")


main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
