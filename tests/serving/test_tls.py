"""Calls over TLS: by an app's client, to a server that also asks for the client's certificate."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from common.errors import InputError
from serving import tls
from serving.client import PredictionFailed, Scorer
from streaming.sources.simulator import declaration


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).add_extension(host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, private = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kind = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return pem, private


class Model(prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request, context):
        return predict_pb2.PredictResponse()


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose certificate is server.pem, and which lets in who has that of client.pem."""
    for name in (tls.AUTHORITY, tls.CERTIFICATE, tls.KEY):
        monkeypatch.delenv(name, raising=False)
    own, key = certificate(tmp_path, "server")
    client, _ = certificate(tmp_path, "client")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), own.read_bytes())], client.read_bytes(), require_client_auth=True
    )
    server = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Model(), server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def call(address: str, timeout_s: float = 0.5) -> dict[str, object]:
    scorer = Scorer([address], "ranker", declaration, timeout_s)
    try:
        return scorer.call("serving_default", {})
    finally:
        scorer.close()


def test_a_client_with_the_right_files_is_answered_and_no_other(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PredictionFailed, match="UNAVAILABLE"):
        call(address)  # not encrypted
    monkeypatch.setenv(tls.AUTHORITY, str(tmp_path / "server.pem"))
    with pytest.raises(PredictionFailed, match="UNAVAILABLE"):
        call(address)  # without a certificate of its own
    monkeypatch.setenv(tls.CERTIFICATE, str(tmp_path / "client.pem"))
    monkeypatch.setenv(tls.KEY, str(tmp_path / "client.key"))
    assert call(address, 10) == {}
    monkeypatch.setenv(tls.AUTHORITY, str(tmp_path / "client.pem"))
    with pytest.raises(PredictionFailed, match="UNAVAILABLE"):
        call(address)  # the server is not one that this authority knows


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({tls.AUTHORITY: "none.pem"}, "MINUTEHAND_TLS is 'none.pem', which cannot be read: No such file or directory"),
        ({tls.AUTHORITY: __file__}, "test_tls.py'; allowed is a PEM file"),
        ({tls.AUTHORITY: "server.pem", tls.KEY: "server.key"}, "MINUTEHAND_TLS_CERTIFICATE is missing, and"),
        ({tls.AUTHORITY: "server.pem", tls.CERTIFICATE: "server.pem"}, "MINUTEHAND_TLS_KEY is missing, and"),
        ({tls.CERTIFICATE: "server.pem", tls.KEY: "server.key"}, "MINUTEHAND_TLS is missing, and"),
    ],
)
def test_a_wrong_file_is_named(
    values: dict[str, str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate(tmp_path, "server")
    monkeypatch.chdir(tmp_path)
    for name in (tls.AUTHORITY, tls.CERTIFICATE, tls.KEY):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as e:
        tls.credentials()
    assert error in str(e.value)
