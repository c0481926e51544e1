"""The examples of docs/examples against a real server: their code is generated from its documents as the page says."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from server import generate, server

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs/examples"
BIN = pathlib.Path(sys.executable).parent

# What the TypeScript examples are made with, as their first lines say; kept in the user's cache directory.
PACKAGES = [
    "openapi-fetch@0.17.0", "openapi-typescript@7.13.0", "typescript@5.9.3", "@types/node@20",
    "ws@8.23.0", "@types/ws@8.18.2", "@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1",
]
# Types of what the proto files say.
TYPES = ["--keepCase", "--longs=Number", "--enums=String", "--oneofs", "--grpcLib=@grpc/grpc-js", "--importFileExtension=.js"]
STRICT = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--types", "node"]

# What each says; a number stands for `#`.
SAID = {
    "over_http.py": ["sent as #, and again: #, duplicate True", "# ada: bonjour", "refused: conversation.not_found"],
    "over_http.ts": ["sent as #, and again: #, duplicate true", "# ada: bonjour", "refused: conversation.not_found"],
    "over_websocket.py": ["the server says hello; positions are of generation known", "sent as #", "the log has message.new at #"],
    "over_websocket.ts": ["the server says hello; positions are of generation known", "sent as #", "# ada: bonjour", "refused: conversation.not_found"],
    "over_grpc.ts": ["the server says hello", "connected as ada", "sent as #", "# ada: bonjour", "refused: NOT_FOUND"],
    "over_grpc.py": ["the server says hello", "connected as ada", "sent as #", "# ada: bonjour", "refused: NOT_FOUND"],
}


def call(*command, **options):
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **options)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)}:\n{result.stdout[-4000:]}")
    return result.stdout


def check(name, said):
    lines = said.splitlines()
    digits = ["".join("#" if char.isdigit() and not before.isdigit() else "" if char.isdigit() else char
                      for before, char in zip(" " + line, line)) for line in lines]
    for wanted in SAID[name]:
        assert wanted in digits, f"{name} does not say {wanted!r}:\n{said}"
    print(f"{name}: {len(lines)} lines, as expected")


def npm(folder):
    """Node's packages, from the cache where they are there already."""
    wanted = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / f"chappe/typescript-{wanted}"
    if not (cache / "ready").exists():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        (cache / "package.json").write_text('{ "private": true, "type": "module" }')
        call("npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES, cwd=cache)
        (cache / "ready").touch()
    (folder / "package.json").write_text('{ "private": true, "type": "module" }')
    (folder / "node_modules").symlink_to(cache / "node_modules")


def main():
    with server() as chappe, tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        document = folder / "openapi.json"
        document.write_bytes(chappe.get("/openapi.json"))

        python = folder / "python"
        generate(python)
        call(BIN / "openapi-python-client", "generate", "--path", document, "--output-path", folder / "client", "--meta", "none")
        shutil.move(folder / "client", python / "chappe_client")
        for name in ["over_http.py", "over_websocket.py", "over_grpc.py"]:
            paths = {**os.environ, "PYTHONPATH": str(python)}
            check(name, call(sys.executable, EXAMPLES / name, chappe.url, env=paths))

        typescript = folder / "typescript"
        typescript.mkdir()
        npm(typescript)
        shutil.copytree(ROOT / "schema/proto", typescript / "proto")
        names = ["over_http", "over_websocket", "over_grpc"]
        for name in names:
            shutil.copy(EXAMPLES / f"{name}.ts", typescript)
        tools = typescript / "node_modules/.bin"
        call(tools / "openapi-typescript", document, "-o", typescript / "chappe.d.ts", cwd=typescript)
        files = ["chappe/v1/chappe.proto", "chappe/v1/realtime.proto"]
        call(tools / "proto-loader-gen-types", *TYPES, "-I", "proto", "-O", "generated", *files, cwd=typescript)
        call(tools / "tsc", *STRICT, *(f"{name}.ts" for name in names), cwd=typescript)
        for name in names:
            check(f"{name}.ts", call("node", f"{name}.js", chappe.url, cwd=typescript))


main()
