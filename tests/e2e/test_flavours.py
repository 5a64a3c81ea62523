"""The optimizer's heavy images in restricted pods: what they are for works there, and Triton serves
the result.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e import models
from tests.e2e.conftest import ROOT, Stage
from tests.unit.optimizer import torch_files, tree_models

pytestmark = pytest.mark.sandbox

# In a process of its own: TensorFlow keeps its threads and half a gigabyte.
KERAS = """
import sys, keras
from tests.e2e import models
network = keras.Sequential([keras.Input((models.FEATURES,), name="x"), keras.layers.Dense(models.CLASSES, use_bias=False)])
network.layers[-1].set_weights([models.WEIGHTS])
network.save(f"{sys.argv[1]}/model.keras")
"""  # noqa: E501
# In the flavour's own image, which is where PyTorch is. Traced: what Python runs from its command
# line has no source to compile.
TORCH = """
import base64, io, json, os, numpy, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        weights = numpy.frombuffer(base64.b64decode(os.environ["WEIGHTS"]), "float32").reshape(int(os.environ["FEATURES"]), -1)
        self.weights = torch.nn.Parameter(torch.tensor(weights))
    def forward(self, x):
        return (x @ self.weights).view(x.shape[0], -1)
class Reads(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("/etc/hostname", size=1, dtype=torch.uint8)
def saved(save, model):
    file = io.BytesIO()
    save(model, file)
    return base64.b64encode(file.getvalue()).decode()
x = torch.zeros(2, int(os.environ["FEATURES"]))
program = torch.export.export(Net(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
print(json.dumps({
    "torchscript": saved(torch.jit.save, torch.jit.trace(Net(), x)),
    "exported": saved(torch.export.save, program),
    "reads": saved(torch.jit.save, torch.jit.trace(Reads(), x)),
}))
"""  # noqa: E501
SERVING = {
    "replicas": 1,
    "resources": {
        "limits": {"cpu": "500m", "memory": "512Mi"},
        "requests": {"cpu": "100m", "memory": "128Mi"},
    },
}


@pytest.fixture(scope="module")
def flavours(stage: Stage, own_images: Future[str]) -> Stage:
    """A namespace of restricted pods, with the images on the nodes; a cluster of one's own pulls
    them itself.
    """
    own_images.result()
    stage.cluster.kubectl(
        "label", "namespace", stage.namespace, "pod-security.kubernetes.io/enforce=restricted"
    )
    return stage


def put(stage: Stage, folder: Path, model: bytes, **data: dict[str, NDArray[Any]]) -> None:
    """Upload ``folder``'s model as e2e/FOLDER.model and data sets as e2e/FOLDER-NAME.npz."""
    store, name = stage.cluster.target.store, folder.name
    (folder / "model").write_bytes(model)
    stage.cluster.upload(store.models, {f"e2e/{name}.model": folder / "model"})
    for which, arrays in data.items():
        np.savez(folder / f"{which}.npz", **arrays)  # type: ignore[arg-type]
        stage.cluster.upload(store.data, {f"e2e/{name}-{which}.npz": folder / f"{which}.npz"})


def prepared_by(stage: Stage, name: str) -> str:
    """The image that the prepare Job of the deployment ran."""
    [job] = stage.cluster.jobs(
        stage.namespace, f"modelrollout.dev/name={name},modelrollout.dev/component=prepare"
    )
    [container] = job["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def test_trees_of_xgboost_are_converted_and_answer_as_xgboost_does(flavours: Stage, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    stage, folder = flavours, tmp_path / "trees"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.unit.optimizer.tree_models", str(folder)], cwd=ROOT, check=True
    )
    model = (folder / "xgboost ubj, three classes").read_bytes()
    x, labels = tree_models.X, tree_models.LABELS["three"]
    put(stage, folder, model, heldout={"x": x, "labels": labels})
    gate = {
        "data": {"uri": stage.data("trees-heldout.npz")},
        "metrics": [{"name": "accuracy", "maxDrop": 0.02, "min": 0.9}],
    }
    source = {"uri": stage.uri("trees.model"), "format": "XGBoost"}
    stage.apply(stage.deployment("trees", model=source, optimization={"gate": gate}, serving=SERVING))
    status = stage.until_ready("trees", 240)["status"]
    [metric] = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"][
        "metrics"
    ]
    assert metric["verdict"] == "Successful"
    assert metric["samples"] == len(x)
    assert prepared_by(stage, "trees") == stage.cluster.target.images.flavours["trees"]
    expected = xgboost.Booster({"nthread": 1}, model_file=bytearray(model)).predict(xgboost.DMatrix(x[:100]))
    served = stage.answers("trees", x[:100])
    [scores] = [value for value in served.values() if value.dtype.kind == "f"]
    assert np.abs(scores - expected).max() < 1e-4


def test_a_network_of_keras_is_converted_and_answers_as_keras_does(flavours: Stage, tmp_path: Path) -> None:
    stage, folder = flavours, tmp_path / "keras"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", KERAS, str(folder)], cwd=ROOT, check=True)
    x, labels = models.inputs(2000, 31)
    put(stage, folder, (folder / "model.keras").read_bytes(), heldout={"x": x, "labels": labels})
    gate = {
        "data": {"uri": stage.data("keras-heldout.npz")},
        "metrics": [{"name": "accuracy", "maxDrop": 0.02, "min": 0.9}],
    }
    source = {"uri": stage.uri("keras.model"), "format": "Keras"}
    stage.apply(stage.deployment("keras", model=source, optimization={"gate": gate}, serving=SERVING))
    status = stage.until_ready("keras", 300)["status"]
    [metric] = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"][
        "metrics"
    ]
    assert (metric["verdict"], metric["samples"]) == ("Successful", 2000)
    assert prepared_by(stage, "keras") == stage.cluster.target.images.flavours["tensorflow"]
    [logits] = stage.answers("keras", x[:100]).values()
    assert np.abs(logits - x[:100] @ models.WEIGHTS).max() < 1e-4


@pytest.fixture(scope="module")
def torch_models(flavours: Stage) -> dict[str, bytes]:
    """What PyTorch makes of ``models.WEIGHTS``, by the names in TORCH; the exported program as a
    later one than the image's lays it out.
    """
    stage = flavours
    told = {
        "WEIGHTS": base64.b64encode(models.WEIGHTS.astype("<f4").tobytes()).decode(),
        "FEATURES": str(models.FEATURES),
        "TORCHINDUCTOR_CACHE_DIR": "/tmp",
    }
    container = {
        "name": "make",
        "image": stage.cluster.target.images.flavours["pytorch"],
        "command": ["python", "-c", TORCH],
        "env": [{"name": name, "value": value} for name, value in told.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"restartPolicy": "Never", "containers": [container], "securityContext": security}
    stage.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "torch", "namespace": stage.namespace},
            "spec": spec,
        }
    )
    stage.cluster.kubectl(
        "wait",
        "pod/torch",
        "-n",
        stage.namespace,
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=90s",
    )
    lines = stage.cluster.kubectl("logs", "torch", "-n", stage.namespace).splitlines()
    made = json.loads(next(line for line in lines if line.startswith("{")))
    actual = {name: base64.b64decode(content) for name, content in made.items()}
    with zipfile.ZipFile(io.BytesIO(actual["exported"])) as archive:
        program = torch_files.as_later(json.loads(archive.read("serialized_exported_program.json")))
    weights = ("data/weights/weight_0", models.WEIGHTS.astype("<f4").tobytes())
    actual["exported"] = torch_files.packaged(
        program, weights, weights={"weights": torch_files.tensor(models.FEATURES, models.CLASSES)}
    )
    return actual


def torch_deployment(stage: Stage, folder: Path, model: bytes, *, declared: bool) -> None:
    """A ModelDeployment of PyTorch's model named as the folder, with a gate of 2,000 samples."""
    folder.mkdir()
    x, labels = models.inputs(2000, 41)
    put(stage, folder, model, heldout={"x": x, "labels": labels})
    name = folder.name
    gate = {
        "data": {"uri": stage.data(f"{name}-heldout.npz")},
        "metrics": [{"name": "accuracy", "maxDrop": 0.02, "min": 0.9}],
    }
    inputs, outputs = (
        [{"name": tensor, "dataType": "FP32", "shape": [-1, size]}]
        for tensor, size in (("x", models.FEATURES), ("logits", models.CLASSES))
    )
    serving = (
        SERVING
        | ({"triton": {"inputs": inputs, "outputs": outputs}} if declared else {})
        | {"batching": {"maxBatchSize": 64}}
    )
    source = {"uri": stage.uri(f"{name}.model"), "format": "PyTorch"}
    stage.apply(stage.deployment(name, model=source, optimization={"gate": gate}, serving=serving))


@pytest.mark.parametrize("name", ["torchscript", "exported"])
def test_a_network_of_pytorch_is_converted_and_answers_as_pytorch_does(
    flavours: Stage, torch_models: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    stage = flavours
    torch_deployment(stage, tmp_path / name, torch_models[name], declared=name == "torchscript")
    status = stage.until_ready(name, 300)["status"]
    [metric] = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"][
        "metrics"
    ]
    assert (metric["verdict"], metric["samples"]) == ("Successful", 2000)
    assert prepared_by(stage, name) == stage.cluster.target.images.flavours["pytorch"]
    x, _ = models.inputs(50, 42)
    for rows in (x[:1], x):
        [logits] = stage.answers(name, rows).values()
        assert np.abs(logits - rows @ models.WEIGHTS).max() < 1e-4


def test_what_pytorch_must_not_run_or_cannot_read_ends_with_its_reason(
    flavours: Stage, torch_models: dict[str, bytes], tmp_path: Path
) -> None:
    stage = flavours
    torch_deployment(stage, tmp_path / "reads", torch_models["reads"], declared=True)
    torch_deployment(
        stage, tmp_path / "later", with_version(torch_models["torchscript"], b"999\n"), declared=True
    )
    torch_deployment(
        stage, tmp_path / "later-exported", with_version(torch_models["exported"], b"99.0"), declared=False
    )
    assert "'aten::from_file'" in stage.until_stalled("reads", "OperatorRefused")
    for name in ("later", "later-exported"):
        assert "version" in stage.until_stalled(name, "ModelInvalid")


def with_version(archive: bytes, version: bytes) -> bytes:
    """The same zip, saying that it is of another version of its format."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(
                name, version if name.endswith("version") and ".data" not in name else source.read(name)
            )
    return changed.getvalue()


def test_a_network_is_pruned_and_trained_and_keeps_its_accuracy(flavours: Stage, tmp_path: Path) -> None:
    stage, folder = flavours, tmp_path / "network"
    folder.mkdir()
    x, labels = models.inputs(6000, 11)
    put(
        stage,
        folder,
        models.perceptron(),
        training={"x": x[:4000], "labels": labels[:4000]},
        heldout={"x": x[4000:], "labels": labels[4000:]},
    )
    training = {"data": {"uri": stage.data("network-training.npz")}, "epochs": 5, "learningRate": 0.002}
    optimization = {
        "steps": [{"prune": {"sparsity": 0.5, "training": training}}],
        "gate": {
            "data": {"uri": stage.data("network-heldout.npz")},
            "metrics": [{"name": "accuracy", "maxDrop": 0.06}],
        },
        "resources": {
            "limits": {"cpu": "1", "memory": "1500Mi"},
            "requests": {"cpu": "50m", "memory": "512Mi"},
        },
    }
    stage.apply(
        stage.deployment(
            "network", model={"uri": stage.uri("network.model")}, optimization=optimization, serving=SERVING
        )
    )
    status = stage.until_ready("network", 240)["status"]
    artifact = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"]
    assert [m["verdict"] for m in artifact["metrics"]] == ["Successful"]
    assert artifact["sizeAfter"] < 0.7 * artifact["sizeBefore"]
    assert prepared_by(stage, "network") == stage.cluster.target.images.flavours["trainer"]
    x, labels = models.inputs(200, 13)
    assert (stage.answers("network", x)["logits"].argmax(1) == labels).mean() > 0.9


@pytest.fixture(scope="module")
def own_image(own_images: Future[str]) -> str:
    """The training image of the documentation; on a cluster of one's own it has to be in a
    registry.
    """
    if "KUBECONTEXT" in os.environ:
        return os.environ.get("TRAINING_IMAGE") or pytest.skip(
            "TRAINING_IMAGE names no image of examples/training-image by its digest"
        )
    return own_images.result()


def own(stage: Stage, name: str, image: str, *args: str) -> dict[str, Any]:
    """A ModelDeployment whose model that image makes smaller, on a node with a GPU, and int8 after
    it.
    """
    gpu = {
        "limits": {"nvidia.com/gpu": 1, "cpu": "500m", "memory": "512Mi"},
        "requests": {"nvidia.com/gpu": 1, "cpu": "50m", "memory": "128Mi"},
    }
    container = {
        "image": image,
        "args": list(args),
        "data": {"uri": stage.data("own-training.npz")},
        "resources": gpu,
    }
    gate = {
        "data": {"uri": stage.data("own-heldout.npz")},
        "metrics": [{"name": "accuracy", "maxDrop": 0.06}],
    }
    optimization = {"steps": [{"graph": {}}, {"container": container}, {"int8": {}}], "gate": gate}
    return stage.deployment(
        name, model={"uri": stage.uri("own.model")}, optimization=optimization, serving=SERVING
    )


@pytest.fixture(scope="module")
def own_data(flavours: Stage, tmp_path_factory: pytest.TempPathFactory) -> None:
    x, labels = models.inputs(3000, 21)
    folder = tmp_path_factory.mktemp("container") / "own"
    folder.mkdir()
    put(
        flavours,
        folder,
        models.perceptron(),
        training={"x": x[:1000]},
        heldout={"x": x[1000:], "labels": labels[1000:]},
    )


@pytest.mark.usefixtures("own_data")
def test_a_users_own_image_makes_the_model_that_is_served(flavours: Stage, own_image: str) -> None:
    stage = flavours
    stage.apply(own(stage, "own", own_image, "0.4"))
    status = stage.until_ready("own", 240)["status"]
    artifact = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"]
    assert [m["verdict"] for m in artifact["metrics"]] == ["Successful"]
    assert artifact["sizeAfter"] < 0.6 * artifact["sizeBefore"]
    x, labels = models.inputs(200, 22)
    assert (stage.answers("own", x)["logits"].argmax(1) == labels).mean() > 0.9
    # The same work for another model: found, and the image does not run again.
    stage.apply(own(stage, "own-again", own_image, "0.4"))
    status = stage.until_ready("own-again", 240)["status"]
    again = stage.cluster.revision(stage.namespace, status["stable"]["revision"])["status"]["artifact"]
    assert (again["digest"], again["reused"]) == (artifact["digest"], True)
    [pod] = stage.cluster.pods(
        stage.namespace, "modelrollout.dev/name=own-again,modelrollout.dev/component=prepare"
    )
    assert [bool(c["state"].get("terminated")) for c in pod["status"]["initContainerStatuses"]] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.usefixtures("own_data")
def test_a_users_own_image_that_fails_says_why(flavours: Stage, own_image: str) -> None:
    flavours.apply(own(flavours, "own-broken", own_image, "half"))
    message = flavours.until_stalled("own-broken", "ContainerFailed")
    assert "code 1: ValueError: could not convert string to float: 'half'" in message
