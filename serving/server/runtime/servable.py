"""One loaded version of a model: a SavedModel in a session of its own, run by signature."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf.config_pb2 import ConfigProto

from serving.server.runtime import warm_up
from serving.server.runtime.session import Array, Function, Session, SessionError, Value

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_INIT_OP = "__saved_model_init_op"


class RequestError(Exception):
    """The error that answers a request: a gRPC code, and TensorFlow Serving's text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def invalid(text: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, text)


def request_error(error: Exception) -> RequestError:
    """Any error as the answer to a request. TensorFlow's error codes equal those of gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, SessionError):
        return RequestError(_CODES[error.code], error.text)
    return RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


class Signature(NamedTuple):
    """Alias -> TensorInfo, and the values of the inputs that a request may leave out."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    defaults: Mapping[str, TensorProto] = {}


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded: the settings of their sessions, the tags of their graph, and their warm-up."""

    session: ConfigProto = field(default_factory=ConfigProto)
    tags: tuple[str, ...] = ("serve",)
    warm_up_rounds: int = 1


class Servable:
    """The SavedModel at `path`, loaded. Requests `use` it; `close` waits until no request does."""

    def __init__(self, name: str, version: int, path: Path, options: LoadOptions) -> None:
        self.name, self.version = name, version
        self._session = Session(path, options.tags, options.session)
        self._functions: dict[str, Function] = {}
        self._users, self._closing, self._idle = 0, False, threading.Condition()
        self.signature_defs = dict(self._session.meta_graph.signature_def)
        try:
            self.signatures = {
                n: Signature(dict(s.inputs), dict(s.outputs), dict(s.defaults))
                for n, s in self.signature_defs.items() if n != _INIT_OP
            }  # fmt: skip
            for request in warm_up.requests(path, options.warm_up_rounds):
                self.run(request.model_spec.signature_name or "serving_default", request.inputs)
        except BaseException:
            self._session.close()
            raise

    def name_in(self, spec: Any, signature: str = "") -> None:
        """Writes the name of this version to the ModelSpec of a reply."""
        spec.name, spec.signature_name = self.name, signature
        spec.version.value = self.version

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Keeps the version loaded within the block; yields False if it is being unloaded."""
        with self._idle:
            usable = not self._closing
            self._users += usable
        try:
            yield usable
        finally:
            with self._idle:
                self._users -= usable
                self._idle.notify_all()

    def close(self) -> None:
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: self._users == 0)
        self._session.close()

    def signature(self, name: str) -> Signature:
        try:
            return self.signatures[name]
        except KeyError:
            text = f'Serving signature key "{name}" not found.'
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, text) from None

    def run(self, signature: str, inputs: Mapping[str, Value], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Runs `signature` with arrays or TensorProtos, and returns the outputs of the aliases `outputs` (none: all).

        All outputs are always computed: the first run with other outputs would optimize the graph again. The session
        compares data types, and each op of the graph the shapes that it gets.
        """
        sig = self.signature(signature)
        _check_inputs(inputs, sig)
        _check_outputs(outputs, sig)
        function = self._functions.get(signature)
        if function is None:  # two threads may both make it: both are the same
            feeds, fetches = (
                {alias: info.name for alias, info in infos.items()} for infos in (sig.inputs, sig.outputs)
            )
            function = self._functions[signature] = self._session.function(feeds, fetches)
        computed = function({**sig.defaults, **inputs} if sig.defaults else inputs)
        return {alias: computed[alias] for alias in outputs} if outputs else computed


def _check_inputs(inputs: Mapping[str, Any], signature: Signature) -> None:
    names = signature.inputs
    if len(inputs) > len(names) or (len(inputs) < len(names) and not signature.defaults):
        sent, needed = sorted(inputs), sorted(names)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(needed)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(needed)}}}). "
            f"Sent extra: {{{','.join(sorted(set(sent) - set(needed)))}}}. "
            f"Missing but required: {{{','.join(sorted(set(needed) - set(sent)))}}}."
        )
    allowed = f"Inputs expected to be in the set {{{','.join(sorted(names))}}}."
    for alias in inputs:
        if alias not in names:
            raise invalid(f"input tensor alias not found in signature: {alias}. {allowed}")
    for alias in names:
        if alias not in inputs and alias not in signature.defaults:
            raise invalid(f"input {alias} is missing and has no default. {allowed}")


def _check_outputs(outputs: Sequence[str], signature: Signature) -> None:
    for alias in outputs:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
    for alias in outputs:
        if list(outputs).count(alias) > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
