"""The checkpoint that ships: prompts that training never showed become what they say, and changing the
attention backend does not change what people see."""

import io
import json
import shutil
import sys

import harness
import numpy as np
import pytest

sys.path.insert(0, str(harness.ROOT / "tools/shapes"))
import captions  # noqa: E402
import score  # noqa: E402

PROMPTS = captions.held_out_prompts(300)[:12]


@pytest.fixture(scope="module")
def shapes():
    with harness.Server(repository=harness.ROOT / "model_repository") as running:
        yield running


def draw(server, pb, number, **fields):
    """Frames [F, H, W, 3] in [0, 1] of prompt `number`, everything else as the model has it."""
    request = pb.GenerationRequest(prompt=PROMPTS[number][0], seed=1000 + number, formats=[pb.NPY], **fields)
    job = server.generation.SubmitJob(request, timeout=30)
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED, done.error
    return np.load(io.BytesIO(server.fetch(job.id, pb.NPY))), done


def test_held_out_prompts_become_what_they_say(shapes, pb):
    results = []
    for number, (_, scene) in enumerate(PROMPTS):
        frames, _ = draw(shapes, pb, number)
        results.append(score.compare(score.judge(frames), scene))
    rates = score.rates(results)
    # The card says how often each is right; a dozen leaves room for two misses.
    assert rates["colour"] >= 90 and rates["motion"] >= 90 and rates["all"] >= 83, score.summary(results)


def test_another_backend_draws_the_same(shapes, pb):
    usual, receipt = draw(shapes, pb, 0)
    exact, other = draw(shapes, pb, 0, attention=pb.AttentionOptions(backend="REFERENCE"))
    ran = [{e.ran for e in r.receipt.entries if e.role == "self"} for r in (receipt, other)]
    assert ran[0] != ran[1] and ran[1] == {"REFERENCE"}
    assert np.abs(usual - exact).mean() < 1 / 255


@pytest.fixture(scope="module")
def euler(tmp_path_factory):
    """The same checkpoint with the solver whose latents come in the dtype of the transformer, which is bfloat16."""
    repository = tmp_path_factory.mktemp("euler")
    model = repository / "shapes"
    shutil.copytree(harness.ROOT / "model_repository/shapes", model)
    solver = "FlowMatchEulerDiscreteScheduler"
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", solver]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "scheduler/scheduler_config.json").write_text(
        json.dumps(dict(_class_name=solver, num_train_timesteps=1000, shift=3.0)))
    with harness.Server("--dtype=bfloat16", repository=repository) as running:
        yield running


def test_what_euler_makes_in_bfloat16_is_fetched_previewed_and_put_aside(euler, pb):
    request = pb.GenerationRequest(prompt=PROMPTS[0][0], seed=5, num_inference_steps=200, formats=[pb.SAFETENSORS],
                                   preview=pb.PreviewOptions(every_steps=1, max_side=64))

    def end_of(job):
        done = euler.wait_for_end(job.id)
        assert done.state == pb.SUCCEEDED, done.error
        return euler.fetch(job.id, pb.SAFETENSORS)

    job = euler.generation.SubmitJob(request, timeout=30)
    states = list(euler.generation.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=120))
    assert any(state.HasField("preview") for state in states)
    alone = end_of(job)
    header = json.loads(alone[8:8 + int.from_bytes(alone[:8], "little")])
    assert header["latents"]["dtype"] == "F32"
    aside = euler.generation.SubmitJob(request, timeout=30)
    euler.wait_until(aside.id, lambda one: one.step >= 2)
    euler.generation.SuspendJob(pb.SuspendJobRequest(job_id=aside.id), timeout=30)
    euler.wait_until(aside.id, lambda one: one.state == pb.SUSPENDED)
    euler.generation.ResumeJob(pb.ResumeJobRequest(job_id=aside.id), timeout=30)
    assert end_of(aside) == alone
