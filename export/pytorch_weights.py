"""Read PyTorch's weights back from a bundle's ONNX files.

The exporter renames, transposes and folds weights. So an export records where each weight of the
modules is: in which initializer of which graph, or, where no initializer holds it, the weight
itself. ``--compare pytorch`` then needs nothing but the bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from rvos_deploy.bundle.folder import PYTORCH, Bundle
from rvos_deploy.bundle.onnx_file import OnnxFile, whole_model
from rvos_deploy.bundle.parity_file import read_arrays
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.networks.export_graph import Float32Edges, Graph
from rvos_deploy.networks.network import Network

LARGEST_SHARE = 0.05
"""A record that would repeat more of the weights than this is not written: the graphs then hold
weights in another form, int8 for example."""

_SMALL = 64
"""Numbers up to which a weight is stored itself; an entry of the record would be as large."""
_PLACES = "places"


@dataclass(frozen=True)
class _Place:
    """Locate a weight: the graph, its initializer, and whether that is transposed."""

    graph: str
    initializer: str
    transposed: bool


def write_record(graphs: Iterable[Graph], network: Network, folder: Path) -> str | None:
    """Write where the modules' weights are in the exported files; return the record's name.

    Args:
        graphs: the modules, with the weights that were exported.
        network: makes inputs that the modules can read.
        folder: of the exported files, and of the record.

    Returns:
        None: too many weights are in no initializer, and nothing was written.
    """
    graphs = tuple(graphs)
    known = _initializers(folder, [graph.spec.name for graph in graphs])
    places: dict[str, list[Any]] = {}
    stored: dict[str, NDArray[np.float32]] = {}
    whole = 0
    used = _used_storage(graphs, network)
    for name, weight in _weights(graphs):
        if weight.untyped_storage().data_ptr() not in used:
            continue
        values = weight.detach().float().numpy()
        whole += values.size
        place = None if values.size <= _SMALL else known.get(_digest(values))
        if place is None:
            stored[name] = values
        else:
            places[name] = [place.graph, place.initializer, place.transposed]
    if sum(values.size for values in stored.values()) > LARGEST_SHARE * whole:
        return None
    record = np.frombuffer(json.dumps(places).encode(), np.uint8)
    np.savez_compressed(folder / PYTORCH, **{_PLACES: record}, **stored)  # type: ignore[arg-type]
    return PYTORCH


def has_record(bundle: Bundle) -> bool:
    """Tell whether a bundle says where PyTorch's weights are."""
    return PYTORCH in bundle.manifest.files


@torch.no_grad()
def load_record(bundle: Bundle, graphs: Iterable[Graph]) -> None:
    """Load a bundle's weights into modules of its configuration, in float32.

    Weights that no graph uses keep their values.

    Raises:
        BundleError: the record or a graph cannot be read, or they do not fit the modules.
    """
    try:
        values = read_arrays(bundle.read(PYTORCH), bundle.path / PYTORCH)
        places = json.loads(values.pop(_PLACES).tobytes())
        for graph in bundle.graphs:
            wanted = {name: place for name, place in places.items() if place[0] == graph}
            if wanted:
                values.update(_read_places(bundle.graph_file(graph), wanted))
        weights = dict(_weights(graphs))
        for name, value in values.items():
            weights[name].copy_(torch.tensor(value).reshape(weights[name].shape))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / PYTORCH} does not fit the network ({error}); export the bundle again, "
            "or pass --checkpoint"
        ) from None


def _read_places(file: OnnxFile, places: Mapping[str, list[Any]]) -> dict[str, NDArray[np.float32]]:
    tensors = {t.name: t for t in whole_model(onnx, file.read()).graph.initializer}
    values = {}
    for name, (_, initializer, transposed) in places.items():
        array = onnx.numpy_helper.to_array(tensors[initializer]).astype(np.float32)
        values[name] = np.ascontiguousarray(array.T if transposed else array)
    return values


def _weights(graphs: Iterable[Graph]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight of the modules once, under the name of the first graph that has it."""
    seen: set[int] = set()
    for graph in graphs:
        module = graph.module.module if isinstance(graph.module, Float32Edges) else graph.module
        for name, weight in module.state_dict(keep_vars=True).items():
            if weight.is_floating_point() and id(weight) not in seen:
                seen.add(id(weight))
                yield f"{graph.spec.name}/{name}", weight


class _StorageUse(TorchDispatchMode):
    """Collect the storages that operators read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self.addresses.add(value.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _used_storage(graphs: Iterable[Graph], network: Network) -> set[int]:
    """Return the addresses of all storages that the modules read."""
    case = network.probe_cases()[0]
    with _StorageUse() as use:
        for graph in graphs:
            axes = graph.spec.axis_sizes(case)
            inputs = probe_inputs(graph.spec, axes, 0, network.probe_makers)
            graph.module(*map(torch.from_numpy, inputs.values()))
    return use.addresses


def _initializers(folder: Path, graphs: Iterable[str]) -> dict[bytes, _Place]:
    """Return the exported float initializers by a hash of their numbers, as they are and
    transposed.
    """
    known: dict[bytes, _Place] = {}
    for graph in graphs:
        model = onnx.load(folder / f"{graph}.onnx")
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.size <= _SMALL or tensor.data_type not in _FLOATS:
                continue
            wide = array.astype(np.float32)
            known.setdefault(_digest(wide), _Place(graph, tensor.name, False))
            if wide.ndim == 2:
                known.setdefault(_digest(wide.T), _Place(graph, tensor.name, True))
    return known


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def _digest(values: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).digest()
