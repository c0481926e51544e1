"""A first client over HTTP. `chappe_client` is generated from the server's OpenAPI document:

    pip install openapi-python-client
    openapi-python-client generate --url http://127.0.0.1:8080/openapi.json
"""

import os
import sys
import time
import uuid

from chappe_client import AuthenticatedClient, Client
from chappe_client.api.conversations import conversation_create
from chappe_client.api.messages import message_list, message_send
from chappe_client.api.server import dev_token
from chappe_client.models import ConversationCreateBody, ConversationKind, DevTokenBody, Error, MessageSendBody, MessageSendBodyBody


def uuid7():
    """A message's id, made before the first attempt: sent twice, it is one message."""
    bits = bytearray(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))
    bits[6] = bits[6] & 15 | 0x70
    bits[8] = bits[8] & 63 | 128
    return uuid.UUID(bytes=bytes(bits))


def main(url):
    # On loopback the server gives a token to whoever asks; elsewhere your own service signs them.
    token = dev_token.sync(client=Client(url), body=DevTokenBody(user="ada")).token
    client = AuthenticatedClient(url, token)

    conversation = conversation_create.sync(client=client, body=ConversationCreateBody(kind=ConversationKind.DIRECT, with_="bob")).conversation.id

    text = MessageSendBodyBody.from_dict({"text": "bonjour"})
    message = MessageSendBody(client_msg_id=uuid7(), body=text)
    sent = message_send.sync(conversation, client=client, body=message)
    again = message_send.sync(conversation, client=client, body=message)
    print(f"sent as {sent.seq}, and again: {again.seq}, duplicate {again.duplicate}")

    page = message_list.sync(conversation, client=client, limit=10)
    for one in page.messages:
        print(f"{one.seq} {one.sender}: {one.body['text']}")

    # Every error has one shape.
    refused = message_list.sync(uuid.uuid4(), client=client)
    assert isinstance(refused, Error) or refused.code, refused
    print(f"refused: {getattr(refused.code, 'value', refused.code)}")


main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
