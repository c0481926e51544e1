"""A foreign gRPC client: generates its code from schema/proto, and chats, watches, cancels and is refused."""

import pathlib
import queue
import signal
import ssl
import tempfile
import time

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from server import generate, server, uuid7


class Refused(Exception):
    """A refusal: its status, and the one error object in its details."""

    def __init__(self, code, error, trailers):
        super().__init__(code, error)
        self.code, self.error, self.trailers = code, error, trailers


def refused(call, *arguments, **options):
    """The refusal that a call ends in."""
    try:
        answer = call(*arguments, **options)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as refusal:
        status = rpc_status.from_call(refusal)
        error = pb.Error()
        if status:
            assert status.code == refusal.code().value[0], (status, refusal)
            assert status.details[0].Unpack(error), status
        return Refused(refusal.code(), error, dict(refusal.trailing_metadata() or ()))
    raise AssertionError("the call was not refused")


def check(refusal, code, name, field=None):
    assert refusal.code == code and refusal.error.code == name, (refusal.code, refusal.error, name)
    if field:
        assert refusal.error.field == field, refusal.error
    assert refusal.error.title and refusal.error.request_id, refusal.error


def chat(chappe, channel):
    """Two people in a group, from its creation to its deletion."""
    ada, bob, eve = ([("authorization", "Bearer " + chappe.token(name))] for name in ("ada", "bob", "eve"))
    conversations, messages = pb_grpc.ConversationsStub(channel), pb_grpc.MessagesStub(channel)
    made = conversations.Create(
        pb.ConversationCreateRequest(kind=pb.CONVERSATION_KIND_GROUP, members=["bob"], title="Towers", data='{"a": [1, null]}'), metadata=ada
    )
    group = made.conversation.id
    assert made.conversation.data == '{"a": [1, null]}' and made.conversation.role == pb.ROLE_OWNER, made
    # The same id is the same message, whatever the transport.
    body = '{ "text": "bonjour",   "big": 18446744073709551615 }'
    send = pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body=body)
    first, again = (messages.Send(send, metadata=ada) for _ in range(2))
    assert again.duplicate and not first.HasField("duplicate") and (again.seq, again.created_at) == (first.seq, first.created_at)
    over_http = chappe.call("GET", f"/v1/conversations/{group}/messages/{first.seq}", bob[0][1].split()[1])
    read = messages.Get(pb.MessageGetRequest(conversation=group, seq=first.seq), metadata=bob).message
    assert read.body == body, "kept byte for byte"
    assert (read.sender, read.id, read.n) == (over_http["message"]["sender"], over_http["message"]["id"], over_http["message"]["n"])
    messages.Edit(pb.MessageEditRequest(conversation=group, seq=first.seq, body="{}", mentions=pb.Mentions(users=["bob"])), metadata=ada)
    history = messages.History(pb.MessageHistoryRequest(conversation=group, seq=first.seq), metadata=bob)
    assert [edit.body for edit in history.history] == [body, "{}"], history
    reactions = pb_grpc.ReactionsStub(channel)
    reactions.Add(pb.ReactionAddRequest(conversation=group, seq=first.seq, key="👍"), metadata=bob)
    page = messages.List(pb.MessageListRequest(conversation=group, limit=5), metadata=bob)
    assert page.messages[0].reactions[0] == pb.ReactionCount(key="👍", count=1, mine=True), page
    receipts = pb_grpc.ReceiptsStub(channel)
    put = pb.ReceiptPutRequest(conversations={group: pb.ReceiptPosition(read=first.n)})
    assert receipts.Put(put, metadata=bob).conversations[0].read_n == first.n
    inbox = conversations.List(pb.ConversationListRequest(), metadata=bob).conversations
    assert [(row.id, row.kind, row.unread) for row in inbox] == [(group, pb.CONVERSATION_KIND_GROUP, 0)], inbox
    log = pb_grpc.EventsStub(channel).List(pb.EventListRequest(conversation=group), metadata=bob)
    assert [event.event for event in log.events] == ["conversation.created", "message.new", "message.updated", "reaction.added"], log
    muted = pb_grpc.InboxStub(channel)
    update = pb.InboxUpdateRequest(conversation=group, muted=True)
    update.muted_until.FromJsonString("2999-01-01T00:00:00.250Z")
    flags = muted.Update(update, metadata=bob)
    assert flags.changed and flags.muted_until.ToJsonString() == "2999-01-01T00:00:00.250Z", flags

    # Refused with the code of the table, and the one object.
    of_group = pb.ConversationGetRequest(conversation=group)
    check(refused(conversations.Get, of_group), grpc.StatusCode.UNAUTHENTICATED, "auth.required")
    nonsense = [("authorization", "Bearer x.y.z")]
    check(refused(conversations.Get, of_group, metadata=nonsense), grpc.StatusCode.UNAUTHENTICATED, "auth.invalid")
    check(refused(conversations.Get, of_group, metadata=eve), grpc.StatusCode.NOT_FOUND, "conversation.not_found")
    wrong = pb.ConversationGetRequest(conversation="x")
    check(refused(conversations.Get, wrong, metadata=ada), grpc.StatusCode.INVALID_ARGUMENT, "request.invalid", "conversation")
    update = pb.ConversationUpdateRequest(conversation=group, title="mine")
    check(refused(conversations.Update, update, metadata=bob), grpc.StatusCode.PERMISSION_DENIED, "forbidden")
    other = pb.MessageSendRequest(conversation=group, client_msg_id=send.client_msg_id, body="{}")
    check(refused(messages.Send, other, metadata=ada), grpc.StatusCode.ALREADY_EXISTS, "message.id_conflict")
    for broken in ["", "{", '{},"seq":1', "[]", '"text"']:
        bad = pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body=broken)
        check(refused(messages.Send, bad, metadata=ada), grpc.StatusCode.INVALID_ARGUMENT, "request.invalid", "body")
    large = pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body='{"text":"' + "x" * 70_000 + '"}')
    check(refused(messages.Send, large, metadata=ada), grpc.StatusCode.OUT_OF_RANGE, "message.too_large")
    huge = pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body='{"text":"' + "x" * 200_000 + '"}')
    check(refused(messages.Send, huge, metadata=ada), grpc.StatusCode.OUT_OF_RANGE, "request.too_large")
    mine = pb.MemberRemoveRequest(conversation=group, user="ada")
    check(refused(pb_grpc.MembersStub(channel).Remove, mine, metadata=ada), grpc.StatusCode.FAILED_PRECONDITION, "member.last_owner")
    nothing = channel.unary_unary("/chappe.v1.Messages/Nothing", lambda message: message, lambda message: message)
    check(refused(nothing, b"", metadata=ada), grpc.StatusCode.UNIMPLEMENTED, "request.unknown_operation")
    garbage = channel.unary_unary("/chappe.v1.Messages/Send", lambda message: message, lambda message: message)
    check(refused(garbage, b"\xff\xff\xff", metadata=ada), grpc.StatusCode.INVALID_ARGUMENT, "request.malformed")
    packed = refused(messages.Send, send, metadata=ada, compression=grpc.Compression.Gzip)
    check(packed, grpc.StatusCode.UNIMPLEMENTED, "request.malformed")
    several = channel.stream_unary("/chappe.v1.Messages/Send", pb.MessageSendRequest.SerializeToString, lambda message: message)
    for sends in [[], [send, send]]:
        check(refused(several, iter(sends), metadata=ada), grpc.StatusCode.UNIMPLEMENTED, "request.malformed")

    # Deadlines and cancellation.
    late = refused(conversations.Get, of_group, metadata=ada, timeout=-1)
    assert late.code == grpc.StatusCode.DEADLINE_EXCEEDED, late
    # A stream on which nothing more is said ends when its client's patience does.
    said = queue.Queue()
    stream = live_grpc.RealtimeStub(channel).Connect(iter(said.get, None), timeout=0.5)
    assert next(stream).HasField("hello")
    # Both sides keep time, and either may be first: nothing but the code is certain. (Where the server's status arrives
    # while this client gives up by itself, the client leaves its message percent-encoded.)
    try:
        late = f"a stream that ended well after {list(stream)}"
    except grpc.RpcError as refusal:
        late = refusal.code()
    assert late == grpc.StatusCode.DEADLINE_EXCEEDED, late
    said.put(None)
    pending = conversations.List.future(pb.ConversationListRequest(), metadata=ada)
    pending.cancel()
    assert pending.cancelled() or pending.done()
    assert conversations.Get(of_group, metadata=ada, timeout=20).conversation.title == "Towers", "the channel goes on"


def server_side(chappe, channel):
    """An API key: on behalf of users, and about them."""
    key = [("authorization", "Bearer " + chappe.key)]
    conversations, admin = pb_grpc.ConversationsStub(channel), pb_grpc.AdminStub(channel)
    create = pb.ConversationCreateRequest(kind=pb.CONVERSATION_KIND_DIRECT, **{"with": "léa"})
    made = conversations.Create(create, metadata=[*key, ("chappe-as-user", "max")])
    same = conversations.Create(
        pb.ConversationCreateRequest(kind=pb.CONVERSATION_KIND_DIRECT, **{"with": "max"}), metadata=[*key, ("chappe-as-user-bin", "léa".encode())]
    )
    assert made.conversation.id == same.conversation.id and same.existed
    user = admin.BanUser(pb.AdminUserBanRequest(user="max", reason="spam"), metadata=key).user
    assert (user.id, user.banned.reason, user.banned.by) == ("max", "spam", "tests"), user
    get = pb.ConversationGetRequest(conversation=made.conversation.id)
    banned = refused(conversations.Get, get, metadata=[*key, ("chappe-as-user", "max")])
    check(banned, grpc.StatusCode.PERMISSION_DENIED, "auth.banned")
    assert not admin.UnbanUser(pb.AdminUserUnbanRequest(user="max"), metadata=key).user.HasField("banned")
    admin.LogoutUser(pb.AdminUserLogoutRequest(user="max"), metadata=key)
    token = [("authorization", "Bearer " + chappe.token("ada"))]
    check(refused(admin.GetUser, pb.AdminUserGetRequest(user="max"), metadata=token), grpc.StatusCode.UNAUTHENTICATED, "auth.invalid")
    check(refused(admin.GetUser, pb.AdminUserGetRequest(user=""), metadata=key), grpc.StatusCode.INVALID_ARGUMENT, "request.invalid", "user")


def around(channel):
    """Health, and what the server says about itself."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ["", "chappe.v1.Messages"]:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    nobody = health_pb2.HealthCheckRequest(service="nobody")
    assert refused(health.Check, nobody).code == grpc.StatusCode.NOT_FOUND
    unknown = health.Watch(nobody)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()
    services = ProtoReflectionDescriptorDatabase(channel)
    names = services.get_services()
    assert {"chappe.v1.Messages", "chappe.v1.Conversations", "grpc.health.v1.Health"} <= set(names), names
    assert services.FindFileContainingSymbol("chappe.v1.MessageSendRequest").package == "chappe.v1"
    return health.Watch(health_pb2.HealthCheckRequest(service="chappe.v1.Messages"))


class Stream:
    """`Realtime.Connect`, with the verbs of a WebSocket."""

    def __init__(self, channel, token, **options):
        self.frames = queue.Queue()
        metadata = [("authorization", "Bearer " + token)] if token else []
        self.call = live_grpc.RealtimeStub(channel).Connect(iter(self.frames.get, None), metadata=metadata, timeout=60, **options)

    def say(self, **frame):
        self.frames.put(live.ClientFrame(**frame))

    def hear(self):
        return next(self.call)

    def close(self):
        self.frames.put(None)


class Socket:
    """A WebSocket whose frames are protobuf."""

    def __init__(self, chappe):
        url = chappe.url.replace("http", "ws") + "/v1/ws"
        self.socket = websockets.sync.client.connect(url, subprotocols=["chappe.v1.protobuf"], max_size=None)
        assert self.socket.subprotocol == "chappe.v1.protobuf"

    def say(self, **frame):
        self.socket.send(live.ClientFrame(**frame).SerializeToString())

    def hear(self):
        return live.ServerFrame.FromString(self.socket.recv(timeout=60))

    def close(self):
        self.socket.close()


def until(connection, wanted):
    """The next frame with this payload, and those before it."""
    before = []
    while True:
        frame = connection.hear()
        if frame.WhichOneof("payload") == wanted:
            return frame, before
        before.append(frame)


def realtime(chappe, channel, open_connection):
    """Live, over a stream or a WebSocket: hello, verdicts, events, catching up; the same frames over both."""
    token = chappe.token("bob")
    ada, bob = ([("authorization", "Bearer " + chappe.token(name))] for name in ("ada", "bob"))
    conversations, messages = pb_grpc.ConversationsStub(channel), pb_grpc.MessagesStub(channel)
    create = pb.ConversationCreateRequest(kind=pb.CONVERSATION_KIND_GROUP, members=["bob"])
    group = conversations.Create(create, metadata=ada).conversation.id

    def send(text):
        return messages.Send(pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body=text), metadata=ada)

    connection = open_connection(token)
    hello = connection.hear().hello
    assert hello.generation and hello.limits.frame_bytes and "resume" in hello.features, hello
    connection.say(id=1, connect=live.Connect(token=token))
    connected, _ = until(connection, "connected")
    assert (connected.id, connected.connected.user) == (1, "bob"), connected
    body = '{ "text":"live", "n": 1.0 }'
    sent = send(body)
    event, _ = until(connection, "event")
    assert (event.event.event, event.event.seq, event.event.data.body) == ("message.new", sent.seq, body), event
    connection.say(id=2, message_send=pb.MessageSendRequest(conversation=group, client_msg_id=uuid7(), body='{"text":"mine"}'))
    answer, before = until(connection, "message_send")
    own = [frame for frame in before if frame.HasField("event")] or [until(connection, "event")[0]]
    assert (answer.id, own[0].event.seq) == (2, answer.message_send.seq), (answer, own)
    connection.say(id=3, message_get=pb.MessageGetRequest(conversation=group, seq=99))
    refusal, _ = until(connection, "error")
    assert (refusal.id, refusal.error.code, refusal.error.status) == (3, "message.not_found", 404), refusal
    connection.say(id=4, typing_stop=pb.TypingStopRequest(conversation=group))
    assert until(connection, "done")[0].id == 4
    connection.say(id=5, heartbeat=live.Heartbeat())
    assert until(connection, "done")[0].id == 5
    connection.say(id=6)
    assert until(connection, "error")[0].error.code == "request.malformed"
    known = answer.message_send.seq
    connection.close()

    # What happened meanwhile comes with a verdict, and then the end of it.
    missed = [send(f'{{"text":"{number}"}}').seq for number in range(3)]
    connection = open_connection(token)
    assert connection.hear().HasField("hello")
    position = live.ClientPosition(generation=hello.generation, seq=known)
    connection.say(id=1, connect=live.Connect(token=token, positions={group: position}))
    verdict = until(connection, "connected")[0].connected.conversations[group]
    assert verdict.recovered and verdict.head == missed[-1], verdict
    _, before = until(connection, "caught_up")
    assert [frame.event.seq for frame in before if frame.HasField("event")] == missed, before
    return connection


def refused_streams(chappe, channel):
    """Streams end with the status of their error; a cancelled one is gone."""
    stream = Stream(channel, None)
    stream.hear()
    stream.say(id=1, connect=live.Connect(token="x.y.z"))
    check(refused(lambda: list(stream.call) and stream.call), grpc.StatusCode.UNAUTHENTICATED, "auth.invalid")
    stream = Stream(channel, None)
    stream.hear()
    stream.say(message_get=pb.MessageGetRequest())
    check(refused(lambda: list(stream.call) and stream.call), grpc.StatusCode.UNAUTHENTICATED, "auth.required")
    # Without a token of its own, `connect` has that of the metadata.
    token = chappe.token("zoe")
    stream = Stream(channel, token)
    stream.hear()
    stream.say(id=1, connect=live.Connect())
    assert until(stream, "connected")[0].connected.user == "zoe"
    sessions = pb_grpc.SessionsStub(channel)
    metadata = [("authorization", "Bearer " + token)]
    assert len(sessions.List(pb.SessionListRequest(), metadata=metadata).sessions) == 1
    stream.call.cancel()
    wait(lambda: not sessions.List(pb.SessionListRequest(), metadata=metadata).sessions, "a cancelled stream is no connection any more")
    # Whoever has nothing more to say closes in peace.
    stream = Stream(channel, token)
    stream.hear()
    stream.close()
    assert list(stream.call) == [] and stream.call.code() == grpc.StatusCode.OK
    # And is told before what they asked for.
    stream = Stream(channel, token)
    stream.say(id=1, connect=live.Connect())
    for number in range(2, 10):
        stream.say(id=number, conversation_list=pb.ConversationListRequest())
    stream.close()
    answered = [frame.id for frame in stream.call if frame.HasField("id")]
    assert answered == list(range(1, 10)) and stream.call.code() == grpc.StatusCode.OK, answered
    # What is too large ends the stream, and says so.
    stream = Stream(channel, token)
    stream.hear()
    stream.say(id=1, connect=live.Connect(token="x" * 90_000))
    check(refused(lambda: list(stream.call) and stream.call), grpc.StatusCode.OUT_OF_RANGE, "request.too_large")
    # A moment that JSON cannot write is refused as it is there.
    never = pb.InboxUpdateRequest(conversation="0198a000-0000-7000-8000-000000000001")
    never.muted_until.seconds = 253_402_300_799
    refusal = refused(pb_grpc.InboxStub(channel).Update, never, metadata=metadata)
    check(refusal, grpc.StatusCode.INVALID_ARGUMENT, "request.invalid", "muted_until")
    # A WebSocket of this subprotocol has no text.
    socket = Socket(chappe)
    socket.hear()
    socket.socket.send("{}")
    try:
        while True:
            socket.hear()
    except ConnectionClosed as closed:
        assert closed.rcvd.code == 4510, closed


def wait(condition, what):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def budget():
    """One budget over all transports, and a word about when to come back."""
    with server("gateway.limits.commands.per_second=1", "gateway.limits.commands.burst=3") as chappe:
        with grpc.insecure_channel(chappe.url.removeprefix("http://")) as channel:
            metadata = [("authorization", "Bearer " + chappe.token("ada"))]
            conversations = pb_grpc.ConversationsStub(channel)
            for _ in range(50):
                try:
                    conversations.List(pb.ConversationListRequest(), metadata=metadata)
                except grpc.RpcError:
                    break
            limited = refused(conversations.List, pb.ConversationListRequest(), metadata=metadata)
            check(limited, grpc.StatusCode.RESOURCE_EXHAUSTED, "rate.limited")
            assert limited.error.retry_after_ms > 0 and "grpc-retry-pushback-ms" in limited.trailers, limited.trailers


def over_tls():
    """The same port behind TLS, and a certificate that is replaced while a stream is open."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("tls.crt", "tls.key")]

        def issue():
            authority = trustme.CA()
            issued = authority.issue_cert("localhost", "127.0.0.1")
            files[0].write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
            files[1].write_bytes(issued.private_key_pem.bytes())
            return authority

        old, trusted = issue(), ssl.create_default_context()
        old.configure_trust(trusted)

        def channel(authority):
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            # Channels of one process share their connections unless they are told not to.
            return grpc.secure_channel(chappe.url.removeprefix("https://"), credentials, [("grpc.use_local_subchannel_pool", 1)])

        settings = [f"gateway.tls.certificate_file={files[0]}", f"gateway.tls.key_file={files[1]}"]
        with server(*settings, trusted=trusted) as chappe, channel(old) as early:
            token = chappe.token("ada")
            metadata = [("authorization", "Bearer " + token)]
            ask = pb.ConversationListRequest()
            stream = Stream(early, token)
            assert stream.hear().HasField("hello")
            stream.say(id=1, connect=live.Connect())
            until(stream, "connected")
            with websockets.sync.client.connect(chappe.url.replace("http", "ws") + "/v1/ws", ssl=trusted) as socket:
                assert "hello" in socket.recv(timeout=60)
            new = issue()
            chappe.process.send_signal(signal.SIGHUP)

            def is_new():
                with channel(new) as late:
                    try:
                        pb_grpc.ConversationsStub(late).List(ask, metadata=metadata, timeout=10)
                    except grpc.RpcError as refusal:
                        assert refusal.code() == grpc.StatusCode.UNAVAILABLE, refusal
                        return False
                    return True

            wait(is_new, "the new certificate is not used")
            with channel(old) as late:
                refusal = refused(pb_grpc.ConversationsStub(late).List, ask, metadata=metadata, timeout=30)
                assert refusal.code == grpc.StatusCode.UNAVAILABLE, refusal
            stream.say(id=2, heartbeat=live.Heartbeat())
            assert until(stream, "done")[0].id == 2, "who was there stays"
            stream.close()


with tempfile.TemporaryDirectory() as folder:
    generate(folder)
    from chappe.v1 import chappe_pb2 as pb, chappe_pb2_grpc as pb_grpc
    from chappe.v1 import realtime_pb2 as live, realtime_pb2_grpc as live_grpc

    began = time.monotonic()
    with server() as chappe:
        with grpc.insecure_channel(chappe.url.removeprefix("http://")) as channel:
            chat(chappe, channel)
            server_side(chappe, channel)
            refused_streams(chappe, channel)
            realtime(chappe, channel, lambda token: Socket(chappe)).close()
            stream = realtime(chappe, channel, lambda token: Stream(channel, token))
            watch = around(channel)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            chappe.leave()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING, "who watches is told that the server leaves"
            watch.cancel()
            assert until(stream, "going_away")[0].going_away.reconnect_after_ms >= 0
            check(refused(lambda: list(stream.call) and stream.call), grpc.StatusCode.UNAVAILABLE, "connection.going_away")
    budget()
    over_tls()
    print(f"a foreign gRPC client chats, watches, cancels and is refused: {time.monotonic() - began:.1f} s")
