"""Pictures of jobs on their way, on the checkpoint that ships: they arrive, they show what comes, and they
change nothing."""

import io
import json
import subprocess

import harness
import numpy
import pytest
import safetensors.numpy
from PIL import Image

SHAPES = harness.ROOT / "model_repository"
PROMPTS = ("a red circle moving left", "a yellow triangle moving down", "a blue square moving right")


@pytest.fixture(scope="module")
def shapes():
    with harness.Server("--threads=2", repository=SHAPES) as running:
        yield running


def request(pb, prompt=PROMPTS[0], seed=1, preview=None, **fields):
    return pb.GenerationRequest(prompt=prompt, seed=seed, preview=preview,
                                formats=[pb.NPY, pb.SAFETENSORS], **fields)


def watch(server, pb, wanted):
    """The job's previews in order, and the job at its end."""
    job = server.generation.SubmitJob(wanted, timeout=30)
    previews = []
    for state in server.generation.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=120):
        if state.HasField("preview"):
            previews.append(state.preview)
    assert state.state == pb.SUCCEEDED, state.error
    return previews, state


def frames_of(server, pb, job_id):
    """float [frames, height, width, 3] in 0..1."""
    return numpy.load(io.BytesIO(server.fetch(job_id, pb.NPY)))


def tiles(picture, frames, height, width):
    """The latent frames of a preview's sheet, which is about square."""
    columns = int(numpy.ceil(numpy.sqrt(frames)))
    assert picture.shape == (-(-frames // columns) * height, columns * width, 3)
    return numpy.stack([picture[i // columns * height:][:height, i % columns * width:][:, :width]
                        for i in range(frames)])


def shrunk(video, frames, height, width):
    """Of each latent frame the middle one of its video frames, as means of squares."""
    shown = video[[0] + [4 * i - 2 for i in range(1, frames)]]
    return shown.reshape(frames, height, shown.shape[1] // height, width, -1, 3).mean(axis=(2, 4))


def test_the_last_preview_resembles_its_own_video(shapes, pb):
    pictures, videos = [], []
    for prompt in PROMPTS:
        previews, done = watch(shapes, pb, request(pb, prompt, preview=pb.PreviewOptions()))
        assert previews and previews[-1].step == done.num_steps
        assert [p.step for p in previews] == sorted({p.step for p in previews})
        image = Image.open(io.BytesIO(previews[-1].png))
        assert image.format == "PNG" and image.mode == "RGB"
        latents = safetensors.numpy.load(shapes.fetch(done.id, pb.SAFETENSORS))["latents"]
        frames, side = latents.shape[2], latents.shape[3]
        pictures.append(tiles(numpy.asarray(image) / 255, frames, side, side).ravel())
        videos.append(shrunk(frames_of(shapes, pb, done.id), frames, side, side).ravel())
    resembles = numpy.corrcoef(pictures, videos)[:len(PROMPTS), len(PROMPTS):]
    print(resembles.round(3))
    assert resembles.diagonal().min() > 0.4
    assert (resembles.argmax(axis=1) == range(len(PROMPTS))).all(), "another video looks more like it"


def test_sizes_are_as_asked_and_steps_too(shapes, pb):
    wanted = pb.PreviewOptions(every_steps=30, max_side=16)
    previews, _ = watch(shapes, pb, request(pb, preview=wanted, num_inference_steps=100))
    assert {p.step for p in previews} <= {30, 60, 90, 100} and len(previews) >= 2
    for preview in previews:
        assert max(Image.open(io.BytesIO(preview.png)).size) <= 16


def test_previews_change_no_bit_of_the_result(shapes, pb):
    shown, plain = (watch(shapes, pb, request(pb, seed=5, preview=preview))[1]
                    for preview in (pb.PreviewOptions(), None))
    for artifact_format in (pb.NPY, pb.SAFETENSORS):
        assert shapes.fetch(shown.id, artifact_format) == shapes.fetch(plain.id, artifact_format)
    assert shown.receipt.fingerprint == plain.receipt.fingerprint
    assert shapes.get(shown.id).HasField("preview") and not shapes.get(plain.id).HasField("preview")


def test_a_watcher_that_does_not_read_holds_nobody_up(shapes, pb):
    wanted = request(pb, preview=pb.PreviewOptions(max_side=1024), height=128, width=128)
    job = shapes.generation.SubmitJob(wanted, timeout=30)
    lazy = [shapes.generation.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=120) for _ in range(20)]
    assert shapes.wait_for_end(job.id).state == pb.SUCCEEDED
    for stream in lazy:
        states = list(stream)
        assert states[-1].state == pb.SUCCEEDED
        assert any(state.HasField("preview") and state.preview.step == job.num_steps for state in states)


def test_options_out_of_range_are_refused_by_field(shapes, pb):
    for wanted, field in ((pb.PreviewOptions(every_steps=0), "preview.every_steps"),
                          (pb.PreviewOptions(max_side=2000), "preview.max_side")):
        error = harness.error_of(lambda: shapes.generation.SubmitJob(request(pb, preview=wanted), timeout=30))
        assert harness.field_and_reason(error)[0] == field


def ctl(server, *arguments):
    done = harness.ctl(*arguments, f"--server={server.public}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_keeps_the_newest_in_a_file(shapes, tmp_path):
    picture = tmp_path / "now.png"
    ctl(shapes, "generate", PROMPTS[0], "-o", tmp_path / "a.gif", f"--preview={picture}", "--preview_side=32")
    assert max(Image.open(picture).size) <= 32
    picture.unlink()
    job_id = ctl(shapes, "submit", PROMPTS[0], "--preview_every=7", "--steps=60").strip()
    lines = ctl(shapes, "watch", job_id, f"--preview={picture}", "--json").splitlines()
    assert Image.open(picture).format == "PNG"
    steps = [int(json.loads(line)["preview"]["step"]) for line in lines if "preview" in json.loads(line)]
    assert steps[-1] == 60 and all(step % 7 == 0 for step in steps[:-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "now.png"]


def test_run_shows_them_too(tmp_path):
    done = harness.ctl("run", PROMPTS[0], "-o", tmp_path / "a.gif", f"--preview={tmp_path / 'now.png'}",
                       f"--model_repository={SHAPES}")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "now.png").format == "PNG"


def test_a_preview_file_that_cannot_be_replaced_is_refused(shapes, tmp_path):
    for path in ("-", "/dev/null", tmp_path, tmp_path / "none" / "a.png"):
        done = subprocess.run([harness.BIN / "denoisectl", "generate", "p", "-o", tmp_path / "a.gif",
                               f"--preview={path}", f"--server={shapes.public}"], capture_output=True, text=True,
                              timeout=60, env=harness.clean_environment())
        assert done.returncode != 0 and done.stdout == "" and str(path) in done.stderr
    assert list(tmp_path.iterdir()) == []
