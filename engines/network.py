"""Parse ONNX into a TensorRT network, and check that the plugin is used where it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.onnx_file import address_of
from rvos_deploy.engines.messages import Messages
from rvos_deploy.engines.onnx_source import PLUGIN_DOMAIN, PLUGIN_NODE, OnnxSource
from rvos_deploy.errors import BackendError, one_line

if TYPE_CHECKING:
    import tensorrt as trt


def create_network(trt: Any, builder: trt.Builder, *, plugin: bool) -> trt.INetworkDefinition:
    """Return an empty, strongly typed network, whose types are those of the ONNX.

    With our plugin, the network prefers ahead-of-time plugins: the engine then carries their PTX
    and needs no Python (NOT RUN).
    """
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if plugin:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    return builder.create_network(flags)


def parse(
    trt: Any,
    network: trt.INetworkDefinition,
    logger: trt.ILogger,
    messages: Messages,
    source: OnnxSource,
) -> trt.OnnxParser:
    """Parse the ONNX into the network.

    Keep the parser and the source until the build ends, because they own the weights.

    Args:
        trt: the imported library.
        network: an empty network.
        logger: of the build.
        messages: the logger's errors.
        source: what to parse.

    Raises:
        BackendError: TensorRT cannot parse the graph; gives the node and TensorRT's reason.
    """
    parser = trt.OnnxParser(network, logger)
    if not _parse_bytes(parser, source):
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot parse {source.path.name}: "
            f"{_parse_error(parser) or messages.cause}; report it with this line"
        )
    return parser


def _parse_bytes(parser: trt.OnnxParser, source: OnnxSource) -> bool:
    """Parse the hashed bytes; given a path, TensorRT would open the external data itself."""
    if not source.external:
        return bool(parser.parse(source.content))
    if not hasattr(parser, "load_model_proto"):
        # TensorRT 10.3 and 10.9 lack it; 10.16 has it.
        return bool(parser.parse(source.whole()))
    accepted = parser.load_model_proto(source.content)
    for name, data in source.external.items():
        accepted = accepted and parser.load_initializer(name, address_of(data), data.nbytes)
    return bool(accepted and parser.parse_model_proto())


def _parse_error(parser: trt.OnnxParser) -> str:
    if parser.num_errors == 0:
        return ""
    error: trt.ParserError = parser.get_error(0)
    reason = (error.desc().strip() or "no reason given").splitlines()[0]
    return one_line(f"node {error.node_name()} ({error.node_operator()}): {reason}", 500)


def check_plugin_layers(
    trt: Any, network: trt.INetworkDefinition, source: OnnxSource, *, plugin: bool
) -> int:
    """Check that every deformable-attention node became one plugin layer, and return their number.

    Where the plugin is missing, TensorRT silently uses the function's body, which is correct and
    slow. Without our plugin (``plugin``) there must be no plugin layers.

    Raises:
        BackendError: the number of plugin layers is not that of the nodes.
    """
    found: int = sum(
        network.get_layer(index).type == trt.LayerType.PLUGIN_V3
        for index in range(network.num_layers)
    )
    wanted = len(source.plugin_nodes) if plugin else 0
    if found != wanted:
        raise BackendError(
            f"{source.path.name} has {len(source.plugin_nodes)} {PLUGIN_DOMAIN}::{PLUGIN_NODE} "
            f"nodes, of which {found} became plugin layers, {wanted} are needed; the plugin is not "
            "registered with this TensorRT: pip install --upgrade 'rvos-deploy[tensorrt]'"
        )
    return found
