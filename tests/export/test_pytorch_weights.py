"""PyTorch's weights are read back from a bundle: exactly, and from nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.folder import PYTORCH, open_bundle, write_manifest
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
    """Copy a bundle without its record, and list ``names`` instead of its files."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    manifest = open_bundle(source).manifest.as_dict()
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256", "files")}
    write_manifest(folder, kept, names)
    return folder


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


def test_a_record_of_another_network_is_refused(tmp_path: Path) -> None:
    packaged = open_bundle("tiny")
    folder = with_manifest(packaged.path, tmp_path / "b", list(packaged.manifest.files))
    places = {"backbone/network.no_such.weight": ["backbone", "view", False]}
    record = np.frombuffer(json.dumps(places).encode(), np.uint8)
    np.savez(folder / PYTORCH, places=record)
    with_manifest(packaged.path, tmp_path / "c", list(packaged.manifest.files))
    shutil.copy(folder / PYTORCH, tmp_path / "c")
    manifest = packaged.manifest.as_dict()
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256", "files")}
    write_manifest(tmp_path / "c", kept, packaged.manifest.files)
    with pytest.raises(BundleError, match=r"pytorch.npz does not fit the network .*export"):
        exported_graphs(open_bundle(tmp_path / "c"))
