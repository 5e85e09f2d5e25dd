import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.desk import Desk
from tests.support.agent import make_short_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for unix sockets, and open to the balancer's workers."""
    made = make_short_directory()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def desk(directory: Path) -> Desk:
    return Desk(directory)


@pytest.fixture
def make_certificate(directory: Path) -> Callable[..., tuple[Path, Path]]:
    """A self-signed certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")

    def make(days: int = 90, name: str = "shop") -> tuple[Path, Path]:
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        argv += ["-subj", "/CN=localhost", "-days", str(days), "-keyout", str(key), "-out", str(cert)]
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
        return cert, key

    return make


@pytest.fixture
def desk_of(directory: Path) -> Callable[..., Desk]:
    def make(kind: str = "nginx", **service: Any) -> Desk:
        return Desk(directory, kind, **service)

    return make
