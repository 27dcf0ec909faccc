import json
import multiprocessing
import time

import pytest

from r1lite.artifacts import Artifact, Locked, Spec, link_latest, newest_checkpoint, seal


def spec(**inputs) -> Spec:
    return Spec("r", "s", "base", inputs, {}, {})


def test_the_key_follows_every_input_and_no_order():
    assert spec(a=1, b=2).key == spec(b=2, a=1).key
    assert spec(a=1).key != spec(a=2).key != spec(b=2).key


@pytest.fixture
def artifact(tmp_path) -> Artifact:
    artifact = Artifact(tmp_path / "s-0123456789ab")
    artifact.prepare(spec(a=1))
    (artifact.path / "model").mkdir()
    (artifact.path / "model" / "weights").write_bytes(b"1234")
    return artifact


def test_done_means_that_the_manifest_is_there(artifact):
    assert not artifact.done
    artifact.finish({"seconds": 1})
    assert artifact.done
    assert artifact.manifest()["outputs"] == {"model/weights": 4}


def test_a_damaged_output_is_named_with_the_remedy(artifact):
    artifact.finish({})
    (artifact.path / "model" / "weights").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"weights is missing or not the 4 bytes .* delete .* and run again"):
        artifact.manifest()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00\xff"])
def test_a_damaged_manifest_is_named_with_the_remedy(artifact, text):
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is not .* delete .* and run again"):
        artifact.manifest()


def hold(artifact: Artifact, held) -> None:
    with artifact.lock():
        held.set()
        time.sleep(60)


def test_a_lock_stops_a_second_writer_and_dies_with_its_process(artifact):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(artifact, held))
    process.start()
    assert held.wait(30)
    with pytest.raises(Locked, match=f"is being written by process {process.pid}"), artifact.lock():
        pass
    process.kill()
    process.join()
    with artifact.lock():
        pass


def test_logs_of_earlier_attempts_are_kept(artifact):
    for number in (1, 2, 3):
        assert artifact.log.name == f"attempt_{number}.log"
        artifact.log.write_text("")


def make_checkpoint(folder, step: int, sealed: bool = True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 10)
    if sealed:
        seal(checkpoint)
    return checkpoint


def test_the_newest_whole_checkpoint_is_taken_by_number(tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_half_written_checkpoint_is_removed_and_the_one_before_taken(tmp_path):
    make_checkpoint(tmp_path, 10)
    half = make_checkpoint(tmp_path, 20, sealed=False)
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    assert not half.exists()


@pytest.mark.parametrize("damage", ["shorten", "remove", "seal"])
def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path, damage):
    make_checkpoint(tmp_path, 10)
    damaged = make_checkpoint(tmp_path, 20)
    if damage == "shorten":
        (damaged / "model.safetensors").write_bytes(b"x")
    elif damage == "remove":
        (damaged / "model.safetensors").unlink()
    else:
        (damaged / "complete.json").write_text("{")
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_latest_points_to_the_newest_by_a_relative_link(tmp_path):
    runs = tmp_path / "runs"
    for key in ("a" * 12, "b" * 12):
        artifact = Artifact(runs / "zero" / f"s-{key}")
        artifact.prepare(spec(key=key))
        link = link_latest(runs, "zero", "s", artifact)
    assert link.resolve() == artifact.path
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert json.loads((moved / "zero" / "latest" / "s" / "spec.json").read_text())["inputs"] == {"key": "b" * 12}
