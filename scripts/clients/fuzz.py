"""Schemathesis over the whole OpenAPI document: no 500, and no answer that the document does not name.

It knows nothing but /openapi.json. Every operation is asked as a user with a token, as a server-side caller with an API
key, and with ids that exist as well as with ids that it made up. Operations that log their caller out come last.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from server import server, uuid7

# What a user may send and the server refuse is told by the code that refuses it (422): that a schema cannot say it all is
# no fault. `ignored` names unknown fields, which are no fault either.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
]

CONFIG = """
[[operations]]
include-path-regex = "^/v1/admin"
headers = {{ Authorization = "Bearer {key}" }}

[[operations]]
include-path-regex = "^/v1/(?!admin|dev|ws)"
headers = {{ Authorization = "Bearer {token}" }}
"""

# Ids that exist: a conversation of ada's with messages, and its members.
KNOWN = """
[parameters]
"path.conversation" = "{conversation}"
"path.seq" = 2
"path.as" = "ada"
"""

LOGOUTS = ["session.logout", "session.logout_all", "admin.user.logout", "admin.user.ban"]


def main():
    seconds = int(os.environ.get("CHAPPE_TEST_FUZZ_S", "40"))
    examples = max(2, seconds // 4)
    seed = os.environ.get("CHAPPE_TEST_SEED")
    unlimited = [f"gateway.limits.{scope}.per_second=0" for scope in ("sends", "commands", "api_keys", "dev_tokens", "handshakes")]
    failed = False
    with server(*unlimited) as chappe, tempfile.TemporaryDirectory() as folder:
        ada = chappe.token("ada")
        group = chappe.call("POST", "/v1/conversations", ada, {"kind": "group", "members": ["bob", "eve"]})
        conversation = group["conversation"]["id"]
        for number in range(3):
            body = {"client_msg_id": uuid7(), "body": {"text": f"message {number}"}}
            chappe.call("POST", f"/v1/conversations/{conversation}/messages", ada, body)
        values = {"token": ada, "key": chappe.key, "conversation": conversation}
        runs = [
            ("ids that it made up", CONFIG, ["--exclude-operation-id"], examples),
            ("ids that exist", KNOWN + CONFIG, ["--exclude-operation-id"], examples),
            ("whoever logs out", CONFIG, ["--include-operation-id"], 5),
        ]
        for name, config, selects, count in runs:
            file = pathlib.Path(folder) / "schemathesis.toml"
            file.write_text(config.format(**values))
            chosen = [word for operation in LOGOUTS for word in (*selects, operation)]
            command = [
                str(pathlib.Path(sys.executable).parent / "schemathesis"), f"--config-file={file}", "run", chappe.url + "/openapi.json",
                "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", str(count),
                "--continue-on-failure", "--generation-database", "none", "--no-color", *chosen,
            ]
            if seed:
                command += ["--seed", seed]
            print(f"--- {name}", flush=True)
            result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = result.stdout if result.returncode else result.stdout[result.stdout.rfind("Test cases:"):]
            print("\n".join(line[:300] for line in said.splitlines() if line.strip()), flush=True)
            failed |= result.returncode != 0
        if b"panicked" in chappe.log.read_bytes():
            print("the server panicked:\n" + chappe.log.read_text()[-4000:])
            failed = True
    raise SystemExit(failed)


main()
