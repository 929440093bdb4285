"""ONNX into a TensorRT network, and the proof that the plugin was taken where it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.onnx_file import address_of
from rvos_deploy.engines.messages import Messages
from rvos_deploy.engines.onnx_source import PLUGIN_DOMAIN, PLUGIN_NODE, OnnxSource
from rvos_deploy.engines.targets import Target
from rvos_deploy.errors import BackendError, one_line

if TYPE_CHECKING:
    import tensorrt as trt


def create_network(trt: Any, target: Target, builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty, strongly typed network: types are those of the ONNX, and nobody else's.

    With plugins, ahead-of-time ones are preferred: their PTX goes into the engine, which then
    needs no Python (NOT RUN).
    """
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if target.plugins:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    return builder.create_network(flags)


def parse(
    trt: Any,
    target: Target,
    network: trt.INetworkDefinition,
    logger: trt.ILogger,
    messages: Messages,
    source: OnnxSource,
) -> trt.OnnxParser:
    """Fill the network from the ONNX. Keep parser and source until the build ends: they own the
    weights.

    Raises:
        BackendError: TensorRT cannot take the graph; names the node and TensorRT's reason.
    """
    parser = trt.OnnxParser(network, logger)
    if not _parse_bytes(parser, source):
        raise BackendError(
            f"{target.module} {trt.__version__} cannot parse {source.path.name}: "
            f"{_parse_error(parser) or messages.cause}; report it with this line"
        )
    check_plugin_layers(trt, target, network, source)
    return parser


def _parse_bytes(parser: trt.OnnxParser, source: OnnxSource) -> bool:
    """Parse what was hashed: with a path, TensorRT would open the external data by itself."""
    if not source.external:
        return bool(parser.parse(source.content))
    taken = parser.load_model_proto(source.content)
    for name, data in source.external.items():
        taken = taken and parser.load_initializer(name, address_of(data), data.nbytes)
    return bool(taken and parser.parse_model_proto())


def _parse_error(parser: trt.OnnxParser) -> str:
    if parser.num_errors == 0:
        return ""
    error: trt.ParserError = parser.get_error(0)
    reason = (error.desc().strip() or "no reason given").splitlines()[0]
    return one_line(f"node {error.node_name()} ({error.node_operator()}): {reason}", 500)


def check_plugin_layers(
    trt: Any, target: Target, network: trt.INetworkDefinition, source: OnnxSource
) -> int:
    """Every deformable-attention node became one plugin layer; returns how many there are.

    Where the plugin is missing, TensorRT takes the function's body without a word. The body is
    right, but not what was asked for. A target without plugins has none.

    Raises:
        BackendError: another number of plugin layers than of nodes.
    """
    found: int = sum(
        network.get_layer(index).type == trt.LayerType.PLUGIN_V3
        for index in range(network.num_layers)
    )
    wanted = len(source.plugin_nodes) if target.plugins else 0
    if found != wanted:
        raise BackendError(
            f"{source.path.name} has {len(source.plugin_nodes)} {PLUGIN_DOMAIN}::{PLUGIN_NODE} "
            f"nodes, of which {found} became plugin layers, {wanted} are needed; the plugin is not "
            "registered with this TensorRT: pip install --upgrade 'rvos-deploy[tensorrt]'"
        )
    return found
