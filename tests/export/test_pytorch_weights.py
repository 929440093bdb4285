"""PyTorch's weights are read back from a bundle: exactly, and from nothing else."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.folder import PYTORCH, Bundle, open_bundle, write_manifest
from rvos_deploy.errors import BundleError, InputError

torch = pytest.importorskip("torch")

from rvos_deploy.export.exported_graphs import exported_graphs  # noqa: E402
from rvos_deploy.export.pytorch_weights import write_record  # noqa: E402
from rvos_deploy.graph_io.probe import probe_inputs  # noqa: E402
from rvos_deploy.networks.export_graph import Graph  # noqa: E402

UNUSED = ("logit_scale", "trunk.head.norm.weight", "trunk.head.norm.bias", "head.proj.weight")
"""CLIP's weights that no graph uses."""


def weights_of(graphs: tuple[Graph, ...]) -> dict[str, torch.Tensor]:
    return dict(graphs[0].module.state_dict())


def with_manifest(source: Path, folder: Path, names: list[str]) -> Path:
    """Copy a bundle, and list ``names`` in place of its files."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return with_record(folder, open_bundle(source), names)


def with_record(folder: Path, bundle: Bundle, names: list[str]) -> Path:
    """List a changed or added record in a bundle's manifest."""
    manifest = bundle.manifest.as_dict()
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256", "files")}
    write_manifest(folder, kept, names)
    return folder


def record_of(places: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, places=np.frombuffer(json.dumps(places).encode(), np.uint8))
    return content.getvalue()


def pickled() -> bytes:
    content = io.BytesIO()
    np.savez(content, places=np.array([{}], dtype=object))
    return content.getvalue()


def test_the_packaged_network_equals_its_checkpoints() -> None:
    checkpoints = Path(__file__).parents[2] / "benchmarks/checkpoints"
    bundle = open_bundle("tiny")
    checkpoint, clip = checkpoints / "tiny.safetensors", checkpoints / "tiny_clip.safetensors"
    expected = weights_of(exported_graphs(bundle, checkpoint, str(clip)))
    found = weights_of(exported_graphs(bundle))
    assert set(found) == set(expected)
    differing = [
        name
        for name, weight in expected.items()
        # the bundle stores weights rounded to float16
        if weight.is_floating_point() and not torch.equal(found[name], weight.half().float())
    ]
    assert all(name.endswith(UNUSED) for name in differing), differing
    assert len(differing) <= len(UNUSED)


@pytest.mark.parametrize("family", ["tiny_bundle", "online_refer_bundle"])
def test_every_export_can_be_read_back(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(family)
    bundle = open_bundle(source)
    # The bundle of another version has no record, but its seed gives its weights.
    names = [name for name in bundle.manifest.files if name != PYTORCH]
    seeded = exported_graphs(open_bundle(with_manifest(source, tmp_path / "b", names)))
    assert write_record(seeded, bundle.network, tmp_path / "b") == PYTORCH
    assert (tmp_path / "b" / PYTORCH).stat().st_size < sum(
        bundle.manifest.files[name].bytes for name in names
    ) * 0.05
    read = exported_graphs(
        open_bundle(with_manifest(tmp_path / "b", tmp_path / "c", [*names, PYTORCH]))
    )
    makers = bundle.network.probe_makers
    for expected, found in zip(seeded, read, strict=True):
        axes = expected.spec.axis_sizes(bundle.network.probe_cases()[-1])
        inputs = [
            torch.from_numpy(a) for a in probe_inputs(expected.spec, axes, 3, makers).values()
        ]
        with torch.inference_mode():
            outputs = [graph.module(*inputs) for graph in (expected, found)]
        for one, other in zip(*(o if isinstance(o, tuple) else (o,) for o in outputs), strict=True):
            assert torch.equal(one, other), expected.spec.name


def test_weights_in_another_form_give_no_record(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    graphs = exported_graphs(bundle)
    with torch.no_grad():
        for name, weight in graphs[0].module.state_dict().items():
            if weight.is_floating_point() and "frame_decoder" in name:
                weight.add_(1e-3)
    shutil.copytree(tiny_bundle, tmp_path / "b")
    (tmp_path / "b" / PYTORCH).unlink(missing_ok=True)
    assert write_record(graphs, bundle.network, tmp_path / "b") is None
    assert not (tmp_path / "b" / PYTORCH).exists()


def test_a_bundle_without_a_record_names_both_options(tmp_path: Path) -> None:
    packaged = open_bundle("tiny")
    names = [name for name in packaged.manifest.files if name != PYTORCH]
    old = open_bundle(with_manifest(packaged.path, tmp_path / "old", names))
    with pytest.raises(InputError, match=r"--checkpoint FILE .*tiny.safetensors.*--clip-weights"):
        exported_graphs(old)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        pickled(),
        record_of([]),
        record_of({"a": 1}),
        record_of({"backbone/network.no_such.weight": ["backbone", "view", False]}),
        record_of({"backbone/network.mask_head.projection.weight": ["backbone", "view", False]}),
        record_of({"backbone/network.mask_head.projection.weight": ["backbone", "none", False]}),
    ],
    ids=["empty", "cut", "pickled", "a list", "a number", "a name", "a size", "an initializer"],
)
def test_a_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    packaged = open_bundle("tiny")
    shutil.copytree(packaged.path, tmp_path / "b")
    (tmp_path / "b" / PYTORCH).write_bytes(content)
    with_record(tmp_path / "b", packaged, list(packaged.manifest.files))
    with pytest.raises(BundleError, match="export"):
        exported_graphs(open_bundle(tmp_path / "b"))


def test_half_precision(tiny_bundle_fp16: Path, tmp_path: Path) -> None:
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.networks.pan2024.graphs import graphs
    from rvos_deploy.networks.pan2024.modules.precision import set_precision
    from rvos_deploy.networks.pan2024.network import model_config

    bundle = open_bundle(tiny_bundle_fp16)
    network = load_network(model_config(bundle.network), Weights(random=True))
    set_precision(network, "fp16")
    shutil.copytree(tiny_bundle_fp16, tmp_path / "b")
    assert write_record(graphs(network), bundle.network, tmp_path / "b") == PYTORCH
    names = list({*bundle.manifest.files, PYTORCH})
    read = weights_of(exported_graphs(open_bundle(with_record(tmp_path / "b", bundle, names))))
    for name, weight in graphs(network)[0].module.state_dict().items():
        if weight.is_floating_point() and not name.endswith(UNUSED):
            assert torch.equal(read[name], weight.float()), name
