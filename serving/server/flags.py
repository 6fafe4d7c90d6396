"""The flags of the model server: those of tensorflow_model_server, and a few more."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.protobuf.config_pb2 import ConfigProto

from common import process
from common.errors import InputError
from serving.server.config import read_proto
from serving.server.loading import Following
from serving.server.runtime.servable import LoadOptions

WITHOUT_EFFECT = (
    "batching_parameters_file", "enable_batching", "enable_grpc_healthcheck_service",
    "enable_per_model_batching_parameters", "enable_profiler", "enable_signature_method_name_check",
    "flush_filesystem_caches", "mixed_precision", "monitoring_config_file", "num_load_threads",
    "num_tflite_interpreters_per_pool", "num_tflite_pools", "num_unload_threads", "per_process_gpu_memory_fraction",
    "platform_config_file", "prefer_tflite_model", "remove_unused_fields_from_bundle_metagraph",
    "rest_api_enable_cors_support", "skip_initialize_tpu", "thread_pool_factory_config_file", "use_alts_credentials",
    "xla_cpu_compilation_enabled", "xla_gpu_compilation_enabled",
)  # fmt: skip
"""Flags of tensorflow_model_server that are accepted and change nothing here."""


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(f"is {text!r}, allowed is true or false")
    return text.lower() in ("true", "1")


def _channel_arguments(text: str) -> list[tuple[str, Any]]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    return [(key, int(value) if value.lstrip("-").isdecimal() else value) for key, _, value in pairs]


def parser(about: str | None) -> argparse.ArgumentParser:
    made = process.Arguments("serving.server.model_server", about or "")
    flag, shown, count = made.add_argument, "(default: %(default)s)", process.at_least(1)

    def switch(name: str, default: bool, about: str) -> None:
        flag(name, type=_truth, nargs="?", const=True, default=default, help=f"{about} (default: {default})".lower())

    flag("--host", default="127.0.0.1", help=f"the address to listen on {shown}")
    flag("--port", type=int, default=8500, help=f"gRPC; 0: none {shown}")
    flag("--grpc_socket_path", default="", metavar="PATH", help="gRPC on this UNIX socket, too")
    flag("--rest_api_port", type=int, default=0, help="REST; 0 (the default): none")
    flag("--model_config_file", type=Path, help="several models: a ModelServerConfig in text form")
    flag("--model_config_file_poll_wait_seconds", type=float, default=0.0, metavar="S",
         help="the pause between two looks at that file; 0 (the default): one look")  # fmt: skip
    flag("--model_base_path", type=Path, help="one model: the folder of its versions")
    flag("--model_name", default="default", help=f"one model: its name {shown}")
    flag("--file_system_poll_wait_seconds", type=float, default=1.0, metavar="S",
         help=f"the pause between two looks at the folders; 0: one look, less: none {shown}")  # fmt: skip
    flag("--max_num_load_retries", type=process.at_least(0), default=5, help=f"loads after one that failed {shown}")
    flag("--load_retry_interval_micros", type=int, default=60_000_000, help=f"the pause before each of them {shown}")
    switch("--allow_version_labels_for_unavailable_models", False, "a new label may name a version that is not loaded")
    switch("--force_allow_any_version_labels_for_unavailable_models", False, "any label may")
    flag("--saved_model_tags", default="serve", help=f"of the graph, with commas between them {shown}")
    switch("--enable_model_warmup", True, "a version runs its recorded requests before it is available")
    flag("--num_request_iterations_for_warmup", type=int, default=1, help=f"each so often {shown}")
    switch("--enable_serialization_as_tensor_content", False, "Predict answers numbers as bytes, not as lists")
    flag("--grpc_max_threads", type=count, default=4, help=f"requests at the same time {shown}")
    flag("--grpc_channel_arguments", type=_channel_arguments, default=[], metavar="K=V,...", help="of gRPC's server")
    flag("--ssl_config_file", type=Path, help="gRPC over TLS: an SSLConfig in text form")
    flag("--tensorflow_session_config_file", type=Path, help="a ConfigProto in text form")
    flag("--tensorflow_session_parallelism", type=int, default=0, help="sets both flags below, if they are not set")
    flag("--tensorflow_intra_op_parallelism", type=int, default=0, help="threads of one op (default: 1)")
    flag("--tensorflow_inter_op_parallelism", type=int, default=0,
         help="ops of a request at the same time (default: one, in the thread of the request)")  # fmt: skip
    flag("--rest_api_num_threads", type=count, default=8, help=f"REST requests computed at the same time {shown}")
    flag("--rest_api_timeout_in_ms", type=count, default=30_000, help=f"the time in which one arrives {shown}")
    flag("--rest_api_max_connections", type=count, default=128, help=f"open REST connections {shown}")
    flag("--rest_api_max_rows", type=count, default=10_000, help=f"rows of a REST request {shown}")
    flag("--rest_api_max_body_bytes", type=count, default=16 << 20, help=f"its body, unpacked {shown}")
    flag("--version", action="store_true", help="print the version of TensorFlow's library")
    for name in WITHOUT_EFFECT:
        flag(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    return made


def parse(argv: list[str] | None, about: str | None) -> argparse.Namespace:
    made = parser(about)
    args = made.parse_args(argv)
    if not (args.version or args.model_config_file or args.model_base_path):
        made.error("one of the arguments --model_config_file --model_base_path is required")
    if not (args.port or args.grpc_socket_path or args.rest_api_port):
        made.error("argument --port: is 0, allowed with --grpc_socket_path or --rest_api_port")
    return args


def following(args: argparse.Namespace) -> Following:
    forced = args.force_allow_any_version_labels_for_unavailable_models
    labels = "all" if forced else "new" if args.allow_version_labels_for_unavailable_models else "none"
    retry_s = max(args.load_retry_interval_micros, 0) / 1e6
    return Following(args.file_system_poll_wait_seconds, args.max_num_load_retries, retry_s, labels)


def load_options(args: argparse.Namespace) -> LoadOptions:
    config, both = ConfigProto(), args.tensorflow_session_parallelism
    if args.tensorflow_session_config_file:
        read_proto("tensorflow_session_config_file", args.tensorflow_session_config_file, config)
    intra = args.tensorflow_intra_op_parallelism or both or config.intra_op_parallelism_threads
    config.intra_op_parallelism_threads = intra or 1
    config.inter_op_parallelism_threads = (
        args.tensorflow_inter_op_parallelism or both or config.inter_op_parallelism_threads
    )
    rounds = max(args.num_request_iterations_for_warmup, 1) if args.enable_model_warmup else 0
    return LoadOptions(config, tuple(args.saved_model_tags.split(",")), rounds)


def credentials(path: Path) -> grpc.ServerCredentials:
    """Reads --ssl_config_file. Its message is in no package, so it is defined here."""
    field = descriptor_pb2.FieldDescriptorProto
    names = ("server_key", "server_cert", "custom_ca", "client_verify")
    types = (field.TYPE_STRING, field.TYPE_STRING, field.TYPE_STRING, field.TYPE_BOOL)
    file = descriptor_pb2.FileDescriptorProto(name="ssl_config.proto", package="tensorflow.serving", syntax="proto3")
    message = file.message_type.add(name="SSLConfig")
    for number, (name, kind) in enumerate(zip(names, types, strict=True), 1):
        message.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.SSLConfig"))
    ssl: Any = read_proto("ssl_config_file", path, kind())
    for name in names[:2]:
        if not getattr(ssl, name):
            raise InputError(f"--ssl_config_file {path}: {name} is missing")
    pair = (ssl.server_key.encode(), ssl.server_cert.encode())
    return grpc.ssl_server_credentials([pair], ssl.custom_ca.encode() or None, ssl.client_verify)
