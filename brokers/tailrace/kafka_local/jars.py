"""The cache of Kafka's jars: one folder a version, every file checked against its pin before it is used.

Rules. A file gets its name in the cache only after its SHA-256 agreed, by a rename: what stands there was whole once,
and is checked again at every use, since it is code. One that differs is deleted and never run. Fetching asks the
clients that this machine has (``jgo``, then ``mvn``) and adds no address of its own, so a mirror that they are told to
use is used.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from tailrace.kafka_local.errors import LocalKafkaError
from tailrace.kafka_local.pins import PINS, VERSION, Jar

_FETCH = "Run: tailrace kafka fetch"
_CLIENT_HINT = "Run: pip install jgo (or install Maven), and see that it reaches its Maven repository"
_MVN_TIMEOUT = 600.0

Client = Callable[[Sequence[Jar], Path], None]


def default_cache() -> Path:
    """The folder of this version's jars, in the platform's folder for caches."""
    return platformdirs.user_cache_path("tailrace", appauthor=False) / f"kafka-{VERSION}"


def classpath(cache: Path | None = None, pins: Sequence[Jar] = PINS) -> list[Path]:
    """The jars, each checked. Raises LocalKafkaError: ``kafka-jars`` where some were not fetched,
    ``kafka-jar-differs`` where one is not the pinned one, which is deleted."""
    folder = cache or default_cache()
    paths = [folder / jar.file for jar in pins]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise LocalKafkaError(
            f"{len(missing)} of Kafka's {len(paths)} jars are not in {folder}: {few}", code="kafka-jars", hint=_FETCH
        )
    for jar, path in zip(pins, paths, strict=True):
        check(path, jar, hint=_FETCH)
    return paths


def fetch(
    cache: Path | None = None, pins: Sequence[Jar] = PINS, clients: Sequence[tuple[str, Client]] | None = None
) -> list[Jar]:
    """Complete the cache, and give what had to be fetched. What differs there is fetched anew.

    Raises LocalKafkaError: ``kafka-jars`` where no client gets them, ``kafka-jar-differs`` where what it got is not
    what is pinned: that is deleted.
    """
    folder = cache or default_cache()
    missing = [jar for jar in pins if not _stands(folder / jar.file, jar)]
    if not missing:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as drafts:
            client = _download(missing, Path(drafts), CLIENTS if clients is None else clients)
            for jar in missing:
                hint = f"It came through {client}: find out who changed it, and delete its copy in the local repository"
                check(Path(drafts) / jar.file, jar, hint=hint)
            for jar in missing:
                (Path(drafts) / jar.file).replace(folder / jar.file)
    except OSError as error:
        raise LocalKafkaError(
            f"Kafka's jars cannot be kept in {folder}: {error}", code="kafka-jars", hint="Make the folder writable"
        ) from error
    return missing


def check(path: Path, jar: Jar, *, hint: str) -> None:
    """Return if the file is the pinned one; else delete it and raise LocalKafkaError (``kafka-jar-differs``)."""
    found = _sha256(path)
    if found != jar.sha256:
        path.unlink(missing_ok=True)
        raise LocalKafkaError(
            f"{path} is not the pinned {jar.coordinate} and was deleted: its SHA-256 is {found}, not {jar.sha256}",
            code="kafka-jar-differs",
            hint=hint,
        )


def _stands(path: Path, jar: Jar) -> bool:
    return path.is_file() and _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(jars: Sequence[Jar], drafts: Path, clients: Sequence[tuple[str, Client]]) -> str:
    """Leave every jar in ``drafts``, and give the name of the client that brought them."""
    said = []
    for name, client in clients:
        try:
            client(jars, drafts)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the next one may do
            said.append(f"{name}: {_one_line(error)}")
            continue
        absent = [jar.file for jar in jars if not (drafts / jar.file).is_file()]
        if not absent:
            return name
        said.append(f"{name}: it did not bring {', '.join(absent[:3])}")
    raise LocalKafkaError(f"Kafka's jars cannot be fetched; {'; '.join(said)}", code="kafka-jars", hint=_CLIENT_HINT)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:300]}…" if len(text) > 300 else text or type(error).__name__


def _by_jgo(jars: Sequence[Jar], drafts: Path) -> None:
    try:
        from jgo.maven import MavenContext
    except ImportError:
        raise RuntimeError("not installed") from None
    # a repository cache of its own: a damaged one of the user's is neither used nor mended
    context = MavenContext(repo_cache=drafts / "repository")
    for jar in jars:
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        shutil.move(artifact.resolve(), drafts / jar.file)


def _by_mvn(jars: Sequence[Jar], drafts: Path) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise RuntimeError("not on the PATH")
    project = drafts / "pom.xml"
    project.write_text(_project(jars), encoding="utf-8")
    command = [mvn, "-B", "-q", "-f", str(project), "dependency:copy-dependencies", f"-DoutputDirectory={drafts}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_MVN_TIMEOUT, check=False)
    if ran.returncode != 0:
        raise RuntimeError(ran.stdout[-2000:] or ran.stderr[-2000:] or f"exit status {ran.returncode}")


def _project(jars: Sequence[Jar]) -> str:
    """A Maven project whose dependencies are these jars, and nothing that they would bring along."""
    nothing_more = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    dependencies = "".join(
        f"<dependency><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version>{nothing_more}</dependency>\n"
        for jar in jars
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>tailrace</groupId><artifactId>kafka</artifactId>"
        f"<version>{VERSION}</version>\n<dependencies>\n{dependencies}</dependencies></project>\n"
    )


CLIENTS: tuple[tuple[str, Client], ...] = (("jgo", _by_jgo), ("mvn", _by_mvn))
