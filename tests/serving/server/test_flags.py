"""The flags of the model server: all of tensorflow_model_server are accepted, and TLS by one of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common.errors import InputError
from serving.server import flags
from serving.server.loading import Following
from serving.server.metrics import ServerMetrics
from serving.server.model_server import GrpcOptions, grpc_server, main
from serving.server.runtime.servable import LoadOptions
from serving.server.versions import Models
from tests.support.ports import free_port

UPSTREAM = (
    "allow_version_labels_for_unavailable_models batching_parameters_file enable_batching "
    "enable_grpc_healthcheck_service enable_model_warmup enable_per_model_batching_parameters enable_profiler "
    "enable_serialization_as_tensor_content enable_signature_method_name_check file_system_poll_wait_seconds "
    "flush_filesystem_caches force_allow_any_version_labels_for_unavailable_models grpc_channel_arguments "
    "grpc_max_threads grpc_socket_path load_retry_interval_micros max_num_load_retries mixed_precision "
    "model_base_path model_config_file model_config_file_poll_wait_seconds model_name monitoring_config_file "
    "num_load_threads num_request_iterations_for_warmup num_tflite_interpreters_per_pool num_tflite_pools "
    "num_unload_threads per_process_gpu_memory_fraction platform_config_file port prefer_tflite_model "
    "remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support rest_api_num_threads rest_api_port "
    "rest_api_timeout_in_ms saved_model_tags skip_initialize_tpu ssl_config_file tensorflow_inter_op_parallelism "
    "tensorflow_intra_op_parallelism tensorflow_session_config_file tensorflow_session_parallelism "
    "thread_pool_factory_config_file use_alts_credentials xla_cpu_compilation_enabled xla_gpu_compilation_enabled"
).split()
"""The flags of tensorflow_model_server 2.19, but for --version."""


def test_every_flag_of_tensorflow_model_server_is_accepted() -> None:
    args = flags.parse([f"--{name}=1" for name in UPSTREAM], None)
    assert {name for name in UPSTREAM if not hasattr(args, name)} == set()
    assert set(flags.WITHOUT_EFFECT) < set(UPSTREAM)
    following, options = flags.following(args), flags.load_options(flags.parse(["--model_base_path=x"], None))
    assert (following.retries, following.retry_s, following.unavailable_labels) == (1, 1e-6, "all")
    assert options.tags == ("serve",) and options.warm_up_rounds == 1
    assert options.session.intra_op_parallelism_threads == 1


def test_how_versions_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "session.config").write_text("inter_op_parallelism_threads: 3 allow_soft_placement: true")
    args = flags.parse(
        [
            "--model_base_path=x", "--saved_model_tags=serve,gpu", "--enable_model_warmup=false",
            f"--tensorflow_session_config_file={tmp_path / 'session.config'}", "--tensorflow_intra_op_parallelism=5",
            "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=pick_first",
        ],
        None,
    )  # fmt: skip
    options = flags.load_options(args)
    assert (options.tags, options.warm_up_rounds) == (("serve", "gpu"), 0)
    session = options.session
    assert (session.intra_op_parallelism_threads, session.inter_op_parallelism_threads) == (5, 3)
    assert session.allow_soft_placement
    assert args.grpc_channel_arguments == [
        ("grpc.max_connection_age_ms", 2000), ("grpc.lb_policy_name", "pick_first"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--enable_model_warmup=maybe", "is 'maybe', allowed is true or false"),
        ("--max_num_load_retries=-1", "is -1, allowed is 0 or more"),
        ("--port=0", "--port: is 0, allowed with --grpc_socket_path or --rest_api_port"),
    ],
)
def test_a_wrong_value_is_named(flag: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model_base_path=x", flag])
    assert says in capsys.readouterr().err


def test_wrong_files_are_named_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("no: proto")
    for flag in ("model_config_file", "tensorflow_session_config_file", "ssl_config_file"):
        caplog.clear()
        assert main(["--model_base_path=/x", f"--{flag}={path}"]) == 2
        (record,) = caplog.records
        assert f"--{flag}: Invalid protobuf file: '{path}'" in record.message and record.exc_info is None


def test_calls_over_tls(tmp_path: Path) -> None:
    key, cert, path = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "ssl.config"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = [
        "openssl",
        "req",
        "-x509",
        *curve,
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    subprocess.run(command, check=True, capture_output=True)
    texts = {"server_key": key.read_text(), "server_cert": cert.read_text(), "custom_ca": cert.read_text()}
    lines = [f"{name}: {json.dumps(text)}" for name, text in texts.items()]
    path.write_text(lines[0])
    with pytest.raises(InputError, match="server_cert is missing"):
        flags.credentials(path)
    path.write_text("\n".join([*lines, "client_verify: true"]))
    port, none = free_port(), Models(ModelServerConfig(model_config_list={}), Following(), LoadOptions())
    server = grpc_server(none, ServerMetrics(), "127.0.0.1", port, 1, GrpcOptions(credentials=flags.credentials(path)))
    server.start()
    ours = (key.read_bytes(), cert.read_bytes())
    for pair, code in ((ours, grpc.StatusCode.NOT_FOUND), ((None, None), grpc.StatusCode.UNAVAILABLE)):
        with (
            grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(cert.read_bytes(), *pair)) as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            r = predict_pb2.PredictRequest(model_spec={"name": "nobody"})
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(r, timeout=10)
        assert refused.value.code() == code  # NOT_FOUND is the server's own answer
    server.stop(0).wait()
