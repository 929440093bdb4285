"""Test types of layers in the network and in the inspector's report, and the check of the plugin.

TensorRT's objects are stand-ins here; test_engines_rtx_build.py checks the real network of
TensorRT-RTX. The inspector's JSON follows NVIDIA's description of TensorRT 10 and 11, because no
engine can be inspected without a driver.
"""

from __future__ import annotations

import json
import warnings
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rvos_deploy.engines import layer_types
from rvos_deploy.engines.network import check_plugin_layers
from rvos_deploy.engines.onnx_source import OnnxSource
from rvos_deploy.errors import BackendError, ParityError

LayerType = Enum("LayerType", ["CONVOLUTION", "SOFTMAX", "SHAPE", "PLUGIN_V3", "ASSERTION"])
DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64"])
TRT = SimpleNamespace(LayerType=LayerType)


class StandInNetwork:
    """Stands in for a parsed network: kinds and types of layers."""

    def __init__(self, *layers: tuple[str, str | None]) -> None:
        self.layers = layers
        self.num_layers = len(layers)

    def get_layer(self, index: int) -> Any:
        kind, dtype = self.layers[index]
        return SimpleNamespace(
            type=LayerType[kind],
            num_outputs=int(dtype is not None),
            get_output=lambda output: SimpleNamespace(dtype=DataType[dtype or ""]),
        )


def test_the_networks_types_are_counted() -> None:
    network = StandInNetwork(
        ("CONVOLUTION", "HALF"),
        ("CONVOLUTION", "HALF"),
        ("PLUGIN_V3", "BF16"),
        ("SOFTMAX", "FLOAT"),
        ("SHAPE", "INT64"),
        ("ASSERTION", None),
    )
    types = layer_types.network_types(network)
    assert types["all"] == {"float16": 2, "bfloat16": 1, "float32": 1, "int64": 1}
    assert types["multiplying"] == {"float16": 2, "bfloat16": 1}
    assert types["kinds"]["CONVOLUTION"] == 2
    assert layer_types.half_share(types["all"], "fp16") == 0.5
    assert layer_types.half_share({"int64": 3}, "fp16") == 0.0
    assert layer_types.half_share(types["all"], "fp32") == 0.0


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ({"DataType": "Half", "Format": "Row major linear"}, "float16"),
        ({"Datatype": "BF16", "Format": "Row major linear FP16 format"}, "bfloat16"),
        ({"Format/Datatype": "Row major linear FP32"}, "float32"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "float16"),
        ({"Format/Datatype": "Float"}, "float32"),
        ({"DataType": "Int64"}, "int64"),
        ({"DataType": "Bool"}, "bool"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "unknown"),
        ({"Name": "x"}, "unknown"),
    ],
)
def test_the_inspectors_spellings(output: dict[str, str], name: str) -> None:
    report = json.dumps({"Layers": [{"Name": "conv", "Outputs": [output]}]})
    assert layer_types.inspected_types(report) == {name: 1}


def test_layers_without_details_are_unknown() -> None:
    report = json.dumps({"Layers": ["a name only", {"Name": "no outputs"}]})
    assert layer_types.inspected_types(report) == {"unknown": 2}


def test_a_half_bundle_that_stays_in_float32_is_refused() -> None:
    layer_types.check_network({"float32": 9}, "fp32", "backbone")
    layer_types.check_network({"float16": 8, "float32": 1}, "fp16", "backbone")
    with pytest.raises(ParityError, match="backbone: 10% of the multiplying layers are float16"):
        layer_types.check_network({"float16": 1, "float32": 9}, "fp16", "backbone")
    with pytest.raises(ParityError, match=r"are bfloat16.*--precision bf16"):
        layer_types.check_network({"float16": 9}, "bf16", "backbone")


def test_an_engine_that_lost_its_half_layers_is_warned_of() -> None:
    network = {"float16": 80, "float32": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer_types.warn_of_lost_types(network, {"float16": 5, "float32": 5}, "fp16", "backbone")
        layer_types.warn_of_lost_types(network, {"float32": 5}, "fp32", "backbone")
    with pytest.warns(RuntimeWarning, match=r"^backbone: 0% of the .* float16, 40% were expected"):
        layer_types.warn_of_lost_types(network, {"float32": 30}, "fp16", "backbone")
    with pytest.warns(RuntimeWarning, match="cannot be read .*'unknown': 30"):
        layer_types.warn_of_lost_types({"float32": 3}, {"unknown": 30}, "fp16", "backbone")


def test_every_node_must_have_become_a_plugin_layer() -> None:
    source = OnnxSource(Path("frame_decoder.onnx"), b"", ("one", "two"))
    both = StandInNetwork(("PLUGIN_V3", "HALF"), ("SOFTMAX", "FLOAT"), ("PLUGIN_V3", "HALF"))
    assert check_plugin_layers(TRT, both, source, plugin=True) == 2
    for layers in ([("SOFTMAX", "FLOAT")], [("PLUGIN_V3", "HALF")]):
        with pytest.raises(BackendError) as error:
            check_plugin_layers(TRT, StandInNetwork(*layers), source, plugin=True)
        count = layers[0][0].count("PLUGIN")
        assert f"has 2 rvos::MSDeformAttn nodes, of which {count} became plugin layers" in str(
            error.value
        )
    body = StandInNetwork(("SOFTMAX", "FLOAT"))
    assert check_plugin_layers(TRT, body, source, plugin=False) == 0
    with pytest.raises(BackendError, match="0 are needed"):
        check_plugin_layers(TRT, both, source, plugin=False)
