"""Back ends: explicit devices, contracts before arithmetic, clean life cycles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.runtime.backends.onnxruntime.backend import (
    CPU,
    OnnxRuntimeBackend,
    OnnxRuntimeGraph,
    Place,
    _load_cuda_libraries,
)
from rvos_deploy.runtime.backends.registry import make_backend


def test_a_device_that_is_not_there_is_an_error_and_no_fallback() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BackendError, match=r"not CUDAExecutionProvider.*rvos-deploy\[gpu\]"):
        make_backend("onnxruntime", "cuda")


def test_a_provider_that_onnxruntime_dropped_is_an_error(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime only logs when CUDA cannot start; here it is made to believe in it."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(BackendError, match=r"fell back to CPUExecutionProvider|cannot load"):
        OnnxRuntimeBackend("cuda").open(bundle, ["mask_head"])


def test_cudas_libraries_are_loaded_before_the_first_session(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``preload_dlls`` prints what it cannot load; that goes into the error, not to stdout."""
    import onnxruntime

    calls: list[str] = []

    def preload() -> None:
        calls.append("loaded")
        print("Failed to load libcublasLt.so.13: no such file\nPlease follow https://onnx...")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    _load_cuda_libraries.cache_clear()
    sessions = _Sessions(monkeypatch)
    real = onnxruntime.InferenceSession

    def session(*arguments, **rest):  # type: ignore[no-untyped-def]
        calls.append("opened")
        opened = real(*arguments, **rest)
        opened.get_providers = lambda: ["CPUExecutionProvider"]
        return opened

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(BackendError) as told:
        OnnxRuntimeBackend("cuda").open(bundle, ["mask_head"])
    _load_cuda_libraries.cache_clear()
    assert calls == ["loaded", "opened"]
    assert sessions.providers
    assert "(Failed to load libcublasLt.so.13: no such file Please" in str(told.value)
    assert "pip install --upgrade 'rvos-deploy[gpu]'" in str(told.value)
    assert capfd.readouterr().out == ""


def test_a_cpu_session_loads_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def preload() -> None:
        raise AssertionError("CUDA's libraries were loaded")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    make_backend("onnxruntime", "cpu")


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_half_installed_libraries_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: type[Exception]
) -> None:
    import sys

    (tmp_path / f"{name}.py").write_text(f"raise {kind.__name__}('libgone.so.1:\\nnot found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(BackendError) as told:
        make_backend(name)
    assert str(told.value) == (
        f"{name} is installed but cannot be loaded (libgone.so.1: not found); install it again: "
        f"pip install --force-reinstall '{name}'"
    )


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(BackendError, match="known: auto, onnxruntime"):
        make_backend("tensorflow")
    with pytest.raises(BackendError, match="known: cpu, cuda"):
        make_backend("onnxruntime", "tpu")


def test_onnxruntime_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'rvos-deploy\[cpu\]'"):
        make_backend("onnxruntime")


def test_a_graph_runs_until_it_is_closed_and_only_what_fits(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    inputs = probe_inputs(bundle.graphs["mask_head"], {"E": 2, "H": 32, "W": 64}, 0)
    with make_backend().open(bundle, ["mask_head"]) as session:
        assert list(session.graphs) == ["mask_head"]
        graph = session.graphs["mask_head"]
        assert graph.run(inputs)["mask_logits"].shape == (2, 8, 16)
        with pytest.raises(InputError, match="input scores must be float32"):
            graph.run({**inputs, "scores": inputs["scores"].astype(np.float64)})
    session.close()
    with pytest.raises(BackendError, match="mask_head was closed; load the bundle again"):
        graph.run(inputs)


def test_a_session_has_all_graphs_or_is_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with make_backend(threads=1).open(bundle) as session:
        assert list(session.graphs) == list(bundle.graphs)
    closed = []
    real = OnnxRuntimeGraph._close

    class Recorded(OnnxRuntimeGraph):
        def _close(self) -> None:
            closed.append(self.spec.name)
            real(self)

    (tmp_path / "mask_head.onnx").write_bytes(b"nonsense")
    backend = OnnxRuntimeBackend(threads=1)
    object.__setattr__(backend, "_graph", lambda spec, file: Recorded(spec, file, Place(CPU), 1))
    files = [
        (bundle.graphs["video_decoder"], bundle.graph_file("video_decoder")),
        (bundle.graphs["mask_head"], OnnxFile(tmp_path / "mask_head.onnx")),
    ]
    with pytest.raises(BackendError, match="cannot load mask_head"):
        backend.open_files(files)
    assert closed == ["video_decoder"]


def test_a_session_neither_spins_nor_plans_its_memory(tiny_bundle: Path) -> None:
    """README.md of the back ends has the measurements."""
    with OnnxRuntimeBackend(threads=1).open(open_bundle(tiny_bundle), ["mask_head"]) as session:
        graph = session.graphs["mask_head"]
        assert isinstance(graph, OnnxRuntimeGraph)
        options = graph._session.get_session_options()
        assert options.enable_mem_pattern is False
        assert options.enable_cpu_mem_arena is True
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_file_that_is_no_graph(tmp_path: Path, tiny_bundle: Path) -> None:
    file = tmp_path / "mask_head.onnx"
    file.write_bytes(b"nonsense")
    spec = open_bundle(tiny_bundle).graphs["mask_head"]
    with pytest.raises(BackendError, match=r"cannot load mask_head\.onnx"):
        OnnxRuntimeBackend().open_files([(spec, OnnxFile(file))])


def test_a_graph_that_fails_is_one_error_and_nothing_on_the_terminal(
    tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime would log the same error in red, with a line break."""
    import onnx
    from onnx import helper, numpy_helper

    bundle = open_bundle(tiny_bundle)
    spec = bundle.graphs["mask_head"]
    model = onnx.load(str(bundle.graph_file("mask_head").path))
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "mask_logits":
                node.output[index] = "whole"
    shape = numpy_helper.from_array(np.array([7, 7, 7], np.int64), "impossible")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["whole", "impossible"], ["mask_logits"]))
    onnx.save(model, str(tmp_path / "mask_head.onnx"))
    inputs = probe_inputs(spec, {"E": 2, "H": 32, "W": 64}, 0)
    with (
        OnnxRuntimeBackend().open_files([(spec, OnnxFile(tmp_path / "mask_head.onnx"))]) as session,
        pytest.raises(BackendError, match="onnxruntime failed in mask_head") as error,
    ):
        session.graphs["mask_head"].run(inputs)
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


class _Sessions:
    """Records what a session is opened with, and opens it on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        self.providers: list[tuple[str, dict[str, str]]] = []
        real = onnxruntime.InferenceSession
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
        )

        def session(path, options, *, providers, **rest):  # type: ignore[no-untyped-def]
            self.providers += providers
            opened = real(path, options, providers=["CPUExecutionProvider"], **rest)
            opened.get_providers = lambda: ["CUDAExecutionProvider"]
            return opened

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)


@pytest.mark.parametrize(("bundle", "options"), [("tiny_bundle", {"use_tf32": "0"}), (None, {})])
def test_cuda_computes_float32_bundles_in_float32(
    request: pytest.FixtureRequest,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str | None,
    options: dict[str, str],
) -> None:
    """TF32 is the CUDA provider's default: off unless the graph's contract says float16."""
    from dataclasses import replace

    sessions = _Sessions(monkeypatch)
    opened = open_bundle(tiny_bundle)
    spec = opened.graphs["mask_head"]
    if bundle is None:
        spec = replace(spec, inputs=tuple(replace(t, dtype="float16") for t in spec.inputs))
    for device, number in (("cuda", "0"), ("cuda:0", "0"), ("cuda:3", "3")):
        sessions.providers.clear()
        with OnnxRuntimeBackend(device).open_files([(spec, opened.graph_file("mask_head"))]):
            asked = {"device_id": number, **options}
            assert sessions.providers == [("CUDAExecutionProvider", asked)]


def test_the_options_are_the_cuda_providers_own() -> None:
    """A key that the provider does not know would be refused on the GPU only."""
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.is_file():
        pytest.skip("this onnxruntime has no CUDA provider to ask")
    content = library.read_bytes()
    assert b"use_tf32" in content
    assert b"device_id" in content


def test_outputs_that_break_the_contract_are_an_error(tiny_bundle: Path) -> None:
    """A graph may do another thing than its manifest says: no later step meets its shapes."""
    from dataclasses import replace

    bundle = open_bundle(tiny_bundle)
    spec = bundle.graphs["mask_head"]
    inputs = probe_inputs(spec, {"E": 2, "H": 32, "W": 64}, 0)
    (output,) = spec.outputs
    for changed, needed in (
        (replace(output, shape=("E", "H/8", "W/8")), r"float32 \[2, 4, 8\]"),
        (replace(output, dtype="float16"), r"float16 \[2, 8, 16\]"),
    ):
        other = replace(spec, outputs=(changed,))
        with make_backend(threads=1).open_files(
            [(other, bundle.graph_file("mask_head"))]
        ) as session:
            with pytest.raises(BackendError) as error:
                session.graphs["mask_head"].run(inputs)
            assert error.match(rf"mask_logits is float32 \[2, 8, 16\], its contract says {needed}")
