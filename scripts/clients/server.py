"""A real server for one test: on free ports, with an API key, on a data directory that ends with it."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

SCOPES = ["users.read", "users.write", "as_user.read", "as_user.write"]


class Server:
    def __init__(self, process, url, log, key, trusted):
        self.process = process
        self.url = url
        self.log = log
        self.key = key
        # Whom to trust, where the server speaks TLS.
        self.trusted = trusted

    def leave(self):
        """Asks the server to end; it ends when its clients have gone, or soon."""
        self.process.send_signal(signal.SIGTERM)

    def call(self, method, path, token=None, body=None):
        """One request, answered with JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        if token:
            request.add_header("authorization", "Bearer " + token)
        with urllib.request.urlopen(request, timeout=30, context=self.trusted) as answer:
            return json.load(answer)

    def get(self, path):
        """The bytes at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30, context=self.trusted) as answer:
            return answer.read()

    def token(self, user):
        return self.call("POST", "/v1/dev/tokens", body={"user": user})["token"]


@contextlib.contextmanager
def server(*settings, trusted=None):
    """Starts the server, and ends it politely; settings are `section.key=value`."""
    with tempfile.TemporaryDirectory(prefix="chappe-") as home:
        home = pathlib.Path(home)
        key = "chappe_" + secrets.token_hex(16)
        keys = home / "keys.toml"
        hashed = hashlib.sha256(key.encode()).hexdigest()
        keys.touch(mode=0o600)
        keys.write_text(f'[[key]]\nname = "tests"\nsha256 = "{hashed}"\nscopes = {json.dumps(SCOPES)}\n')
        command = [os.environ["CHAPPE_BINARY"], "--data-dir", str(home / "data"), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        for setting in [f"gateway.auth.api_keys_file={keys}", *settings]:
            command += ["--set", setting]
        log = home / "log"
        with open(log, "wb") as words, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True) as process:
            try:
                url = None
                for line in process.stdout:
                    found = re.search(r"listening on (https?://[^,\s]+)", line)
                    if found:
                        url = found.group(1)
                        break
                if not url:
                    raise SystemExit("the server did not start:\n" + log.read_text()[-4000:])
                yield Server(process, url, log, key, trusted)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                process.stdout.close()


def uuid7():
    """An id as clients give them to their messages: made before the first attempt."""
    bits = bytearray(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))
    bits[6] = bits[6] & 15 | 0x70
    bits[8] = bits[8] & 63 | 128
    return str(uuid.UUID(bytes=bytes(bits)))


def generate(folder):
    """What any user of gRPC does: the code of a client, from the proto files."""
    import grpc_tools
    from grpc_tools import protoc

    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    proto = pathlib.Path(__file__).resolve().parents[2] / "schema/proto"
    words = [
        "protoc", f"-I{proto}", f"-I{pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
        f"--python_out={folder}", f"--grpc_python_out={folder}",
        *(str(file) for file in sorted(proto.glob("chappe/v1/*.proto"))),
    ]
    if protoc.main(words) != 0:
        raise SystemExit("the proto files cannot be compiled")
    sys.path.insert(0, str(folder))
