"""Fixtures that all rooms share: a tiny base model and drawn photos, offline and on one thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tests.s3_server import S3Server

torch.set_num_threads(1)
SHAPED = [
    "training.loss",
    "evaluation.face",
    "evaluation.references",
    "evaluation.detection",
    "evaluation.facenet",
    "evaluation.dlib_face",
    "evaluation.prompt",
]
install_import_hook(SHAPED, "beartype.beartype")  # shapes are checked in tests and free in production


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a diffusers folder of few layers with small random weights; never to be changed by a test."""
    from tests.tiny_models import build_pipeline

    return str(build_pipeline(tmp_path_factory.mktemp("base") / "tiny-sd", shallow=True))


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with all of SD1.5's layers, for laws of where each is and what it is called."""
    from tests.tiny_models import build_pipeline

    return str(build_pipeline(tmp_path_factory.mktemp("whole") / "tiny-sd"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of six distinct drawn pictures, 96x80 px, jpg and png."""
    from tests.tiny_models import draw_photos

    return draw_photos(tmp_path_factory.mktemp("subject") / "photos")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`local-dir:` name of a small random CLIP with weights."""
    from tests.tiny_models import build_clip

    return f"local-dir:{build_clip(tmp_path_factory.mktemp('clip') / 'tiny-clip')}"


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory: pytest.TempPathFactory, tiny_base: str) -> str:
    """Path of a small random ControlNet folder that fits `tiny_base`."""
    from tests.tiny_models import build_controlnet

    return str(build_controlnet(tmp_path_factory.mktemp("controlnet") / "tiny-controlnet", tiny_base))


@pytest.fixture(scope="session")
def tiny_face_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of random 128-wide InceptionResnetV1 weights: real boxes, embeddings without meaning."""
    from tests.tiny_models import build_face_weights

    return str(build_face_weights(tmp_path_factory.mktemp("face") / "inception.safetensors"))


@pytest.fixture(scope="session")
def _one_s3_server() -> Iterator[S3Server]:
    from tests.s3_server import S3Server  # moto takes a second, and most tests have no use for it

    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(_one_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server on this machine; this process asks it as `head`, as its environment says."""
    from s3fs import S3FileSystem

    for name, value in _one_s3_server.environment("head").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # so that an error which lasts costs a second, not five
    S3FileSystem.clear_instance_cache()  # which an earlier test may have pointed elsewhere
    _one_s3_server.log.clear()
    yield _one_s3_server
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def ray_session(request: pytest.FixtureRequest) -> Iterator[None]:
    """One Ray session for those tests of a module that do not kill it: of two CPUs, or of its `RAY_CPUS`.

    A sweep has as many processes as there are CPUs, and each loads its libraries for ten seconds.
    """
    import ray

    import sweeps.execution  # noqa: F401 -- it sets what Ray reads from the environment

    ray.init(
        address="local",
        num_cpus=getattr(request.module, "RAY_CPUS", 2),
        include_dashboard=False,
        object_store_memory=100_000_000,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real faces and weights beside the repository; a test that asks for it is skipped where it is absent."""
    folder = (Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip("needs the folder shared/data beside the repository")
    return folder
