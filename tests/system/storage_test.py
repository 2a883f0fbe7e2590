"""A workdir in a bucket holds what a local one would, whatever machine resumes the run."""

import dataclasses
import http.server
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import read_metrics, trainer_environment
from trainer.checkpoints.store import Checkpointer
from trainer.commands.compare.command import compare
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records.metrics import TENSORBOARD_DIR
from trainer.run import loop
from trainer.run.loop import train
from trainer.workdir import storage
from trainer.workdir.files import (
    CONFIG_FILE,
    CONFIG_FLAGFILE,
    METRICS_FILE,
    RESUMES_FILE,
    TIMING_FILE,
)
from trainer.workdir.lock import LOCK_FILE, lock

pytestmark = pytest.mark.system


def names(folder: epath.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def short(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, num_steps=25)


def test_a_run_in_a_bucket_is_the_local_run(
    short: TrainConfig, remote_workdir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = dataclasses.replace(short, tensorboard=True, report=True)
    train(short, tmp_path)
    # Every call starts with an empty folder for its records, as a new machine does.
    train(dataclasses.replace(short, num_steps=12), remote_workdir)
    with caplog.at_level(logging.INFO, "trainer"):
        train(short, remote_workdir)
    assert "resuming at step 12" in caplog.text
    assert inspect(remote_workdir)["digests"] == inspect(tmp_path)["digests"]
    assert read_metrics(remote_workdir, "train") == read_metrics(tmp_path, "train")
    found = names(epath.Path(remote_workdir))
    assert found == {
        "checkpoints",
        LOCK_FILE,
        CONFIG_FILE,
        CONFIG_FLAGFILE,
        METRICS_FILE,
        RESUMES_FILE,
        TIMING_FILE,
        "report.png",
        TENSORBOARD_DIR,
    }
    timings = [
        json.loads((epath.Path(w) / TIMING_FILE).read_text()) for w in (remote_workdir, tmp_path)
    ]
    assert [[start["steps"] for start in timing] for timing in timings] == [[12, 13], [25]]
    compared = compare([remote_workdir, str(tmp_path)], str(tmp_path / "compare.png"))
    assert [run["steps"] for run in compared["runs"]] == [25, 25]
    assert compared["runs"][0]["test_accuracy"] == compared["runs"][1]["test_accuracy"]
    assert not compared["differences"]
    assert scalar_steps(epath.Path(remote_workdir) / TENSORBOARD_DIR) == list(range(25))
    local = (tmp_path / CONFIG_FILE).read_text()
    assert (epath.Path(remote_workdir) / CONFIG_FILE).read_text() == local
    assert train(short, remote_workdir).complete


def scalar_steps(folder: epath.Path) -> list[int]:
    """The steps of the learning rate that TensorBoard shows, file by file."""
    found = []
    for path in folder.iterdir():
        with tempfile.TemporaryDirectory() as copy:
            (epath.Path(copy) / path.name).write_bytes(path.read_bytes())
            board = EventAccumulator(copy)
            board.Reload()
            tags = [tag for tag in board.Tags()["scalars"] if "learning_rate" in tag]
            found += [event.step for tag in tags for event in board.Scalars(tag)]
    return found


def test_a_run_resumes_where_it_was_copied_to(
    short: TrainConfig, remote_workdir: str, tmp_path: Path
) -> None:
    train(dataclasses.replace(short, num_steps=12), tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        target = epath.Path(remote_workdir) / str(path.relative_to(tmp_path))
        target.write_bytes(path.read_bytes())
    for workdir in (tmp_path, remote_workdir):
        train(short, workdir)
    assert inspect(remote_workdir)["digests"] == inspect(tmp_path)["digests"]
    assert read_metrics(remote_workdir, "train") == read_metrics(tmp_path, "train")


def test_the_records_are_there_before_the_checkpoint(
    short: TrainConfig, remote_workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, found = Checkpointer.save, []

    def look_and_save(self, state, step, meta, best=None) -> None:
        found.append((step, len(read_metrics(remote_workdir, "train"))))
        save(self, state, step, meta, best)

    monkeypatch.setattr(Checkpointer, "save", look_and_save)
    train(short, remote_workdir)
    assert found == [(10, 10), (20, 20), (25, 25)]


def test_what_is_damaged_or_unfinished_is_set_aside(
    short: TrainConfig, remote_workdir: str
) -> None:
    train(short, remote_workdir)
    digest, before = inspect(remote_workdir)["digest"], read_metrics(remote_workdir, "train")
    checkpoints = epath.Path(remote_workdir) / "checkpoints"
    for file, aside in (("state/manifest.ocdbt", "25"), ("commit_success.txt", "25.1")):
        files = names(checkpoints / "25") - {"commit_success.txt"}
        (checkpoints / "25" / file).unlink()
        assert inspect(remote_workdir)["step"] == 20
        assert "25" in names(checkpoints)
        train(short, remote_workdir)
        assert files <= names(checkpoints / "damaged" / aside)
        assert names(checkpoints) == {"10", "20", "25", "damaged"}
        assert inspect(remote_workdir)["digest"] == digest
        assert read_metrics(remote_workdir, "train") == before


def test_a_first_save_that_was_killed_does_not_stop_the_run(
    short: TrainConfig, remote_workdir: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = epath.Path(remote_workdir) / "checkpoints"
    (checkpoints / "10" / "state").mkdir(parents=True)
    (checkpoints / "10" / "state" / "part").write_text("half of it")
    train(short, remote_workdir)
    assert names(checkpoints / "damaged" / "10" / "state") == {"part"}
    assert names(checkpoints) == {"10", "20", "25", "damaged"}
    assert "is damaged" not in caplog.text


def test_a_second_trainer_is_refused(
    short: TrainConfig, remote_workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.workdir.lease._RENEW_SECONDS", 0.5)
    with lock(epath.Path(remote_workdir)), pytest.raises(UsageError, match="is being written by"):
        train(short, remote_workdir)
    assert names(epath.Path(remote_workdir)) == {LOCK_FILE}


def test_a_trainer_that_lost_its_lease_saves_nothing(
    short: TrainConfig, remote_workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = epath.Path(remote_workdir)
    note_start = loop.note_start

    def note_and_steal(job) -> None:
        note_start(job)
        bucket, name = storage.bucket_and_name(workdir / LOCK_FILE)
        blob = bucket.blob(name)
        blob.metadata = {"holder": "the thief", "id": "other", "expires": str(time.time() + 60)}
        blob.upload_from_string("")

    monkeypatch.setattr(loop, "note_start", note_and_steal)
    with pytest.raises(RunError, match=r"is being written by the thief now: .*nothing was saved"):
        train(short, remote_workdir)
    assert names(workdir) == {LOCK_FILE, CONFIG_FILE, CONFIG_FLAGFILE}


def test_only_what_changed_is_copied(remote_workdir: str) -> None:
    workdir = epath.Path(remote_workdir)
    files = storage.LocalFiles(workdir)
    folder = files.folder / "tensorboard"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_text(name)
    files.publish()
    (workdir / "tensorboard" / "one").unlink()
    (folder / "two").write_text("more")
    files.publish()
    assert names(workdir / "tensorboard") == {"two"}
    assert (workdir / "tensorboard" / "two").read_text() == "more"
    files.close()
    assert not files.folder.exists()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("s3://bucket/folder", "use a local folder, or gs://bucket/folder"),
        ("gs://", "names no bucket"),
        ("gs://nowhere/folder", "there is no bucket nowhere"),
    ],
)
def test_what_is_no_workdir(storage_emulator: str, workdir: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--workdir={workdir}.*{message}"):
        storage.open_workdir(workdir)


@pytest.fixture
def forbidding_server(storage_emulator: str):
    """Start a server that gives what a pattern allows of an empty bucket, and refuses the rest."""
    servers = []

    def start(allowed: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                refused = not re.search(allowed, self.path)
                body = b'{"error": {"message": "no access"}}' if refused else b'{"name": "test"}'
                self.send_response(403 if refused else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


BUCKET, ANY_OBJECT = r"/b/test\?", r"/b/test/o\?(?!.*prefix)"


@pytest.mark.parametrize("allowed", ["nothing", BUCKET])
def test_no_permission(forbidding_server, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", forbidding_server(allowed))
    message = r"is not for these credentials: .*no access.* the roles"
    with pytest.raises(UsageError, match=message):
        storage.open_workdir("gs://test/folder")


def test_a_bucket_that_stops_answering(
    forbidding_server, monkeypatch: pytest.MonkeyPatch, trainer
) -> None:
    url = forbidding_server(f"{BUCKET}|{ANY_OBJECT}")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    done = trainer("inspect", "--workdir=gs://test/folder")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir=gs://test/folder does not answer: Forbidden")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_no_credentials(
    storage_emulator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trainer, command: str
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    done = trainer(command, "--workdir=gs://test/folder")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --workdir=gs://test/folder: there are no Google cred")
    assert done.stderr.count("\n") == 1


READ_FROM = """
import tensorstore
from trainer.workdir import storage
context = {"gcs_request_retries": {"max_retries": 1, "initial_delay": "1ms"}}
spec = {"driver": "gcs", "bucket": "test", "path": "folder/", "context": context}
try:
    tensorstore.KvStore.open(spec).result().read("file").result()
except Exception as error:
    print(storage.is_outage(error), error)
"""


@pytest.mark.parametrize("server", ["nobody", "forbidding"])
def test_a_bucket_that_does_not_answer_says_nothing_about_a_checkpoint(
    forbidding_server, server: str
) -> None:
    # It reads the address once, so it needs a process of its own.
    url = forbidding_server("nothing") if server == "forbidding" else "http://127.0.0.1:9"
    command = [sys.executable, "-c", READ_FROM]
    environment = trainer_environment() | {"TENSORSTORE_GCS_HTTP_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("True "), done.stdout + done.stderr
