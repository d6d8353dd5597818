"""Verifies chains with BoringSSL, the library in Envoy, by way of gRPC: a handshake in which the client presents the chain.

Reads one JSON object a line: {"leaf": PEM, "key": PEM, "sent": PEM, "roots": PEM}. Prints for each the reason of a refusal,
or an empty line. Who presents the chain as a server is verified by the same code; only the purpose differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent import futures

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc  # noqa: E402

TIMEOUT = 20


def own_certificate():
    """A key and a certificate for the server, which has no part in what is judged."""
    with tempfile.TemporaryDirectory() as scratch:
        key, cert = os.path.join(scratch, "key"), os.path.join(scratch, "cert")
        command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"]
        command += ["-subj", "/CN=judge", "-addext", "subjectAltName=DNS:judge.test", "-keyout", key, "-out", cert]
        subprocess.run(command, check=True, capture_output=True)
        with open(key, "rb") as key_file, open(cert, "rb") as cert_file:
            return key_file.read(), cert_file.read()


def refusal(case, key, cert):
    """Why the chain is refused; empty if it is not."""
    roots, presented = case["roots"].encode(), (case["leaf"] + case["sent"]).encode()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    try:
        credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=roots, require_client_auth=True)
        port = server.add_secure_port("localhost:0", credentials)
        server.start()
        credentials = grpc.ssl_channel_credentials(cert, case["key"].encode(), presented)
        options = [("grpc.ssl_target_name_override", "judge.test"), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
            try:
                channel.unary_unary("/judge/Judge")(b"", timeout=TIMEOUT)
            except grpc.RpcError as error:
                # No method is served: that is as far as an accepted chain gets.
                return "" if error.code() == grpc.StatusCode.UNIMPLEMENTED else f"{error.code().name}: {error.details()}"
        return "an unserved method was answered"
    except Exception as error:  # A certificate that BoringSSL does not even read.
        return f"{type(error).__name__}: {error}"
    finally:
        server.stop(None)


def main():
    key, cert = own_certificate()
    for line in sys.stdin:
        print(refusal(json.loads(line), key, cert).replace("\n", " "), flush=True)


main()
