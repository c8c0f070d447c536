"""A step that hangs: the server says so, tells where it stands, ends itself, and its successor goes on."""

import json

import harness
import pytest

from harness import eventually, page

BAD = "SAGE_ATTN"
PROMPT = "a red circle moving left"


@pytest.fixture
def start(tmp_path):
    """Starts servers one after the other on one state folder."""
    return lambda hung_after: harness.Server("--enable_drills", f"--hung_after={hung_after}",
                                             f"--state_dir={tmp_path}",
                                             repository=harness.ROOT / "model_repository")


def submit(server, pb, **fields):
    request = pb.GenerationRequest(prompt=PROMPT, seed=5, num_inference_steps=8, formats=[pb.NPY],
                                   attention=pb.AttentionOptions(backend=BAD), **fields)
    return server.generation.SubmitJob(request, timeout=30)


def stall(server, pb, ttl_ms=600_000):
    request = pb.DrillRequest(backend=BAD, fault="stall", reason="a rehearsal")
    request.ttl.FromMilliseconds(ttl_ms)
    server.operator.Drill(request, timeout=30)


def hang(server, pb):
    """Has the steps of a known kind hang, and gives the one job in them."""
    assert server.wait_for_end(submit(server, pb).id).state == pb.SUCCEEDED
    stall(server, pb)
    return submit(server, pb).id


def events(server, name):
    lines = [json.loads(line) for line in server.read_log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_a_step_that_hangs_ends_the_process_and_its_job_goes_on(pb, start):
    with start("4s") as server:
        job = hang(server, pb)
        eventually(lambda: "HUNG: step of shapes (SAGE_ATTN)" in page(server.http, "/readyz")[1], 60, "HUNG")
        assert server.process.wait(timeout=60) == 71
        hung, = events(server, "engine.hung")
        assert (hung["unit"], hung["model"], hung["backend"], hung["jobs"]) == ("step", "shapes", BAD, job)
        stacks = events(server, "engine.stack")
        assert [stack["hung"] for stack in stacks].count("true") == 1 and stacks[0]["hung"] == "true"
        assert "denoised+0x" in stacks[0]["frames"], "where the step stands"
        assert len(stacks) > 5, "all threads"

    with start("60s") as server:
        done = server.wait_for_end(job)
        assert (done.state, done.attempt) == (pb.SUCCEEDED, 2)


def test_a_step_that_ends_after_all_is_forgiven(pb, start):
    with start("20s") as server:
        assert page(server.http, "/readyz")[0] == 200
        job = hang(server, pb)
        eventually(lambda: page(server.http, "/readyz")[0] == 503, 120, "HUNG")
        stall(server, pb, ttl_ms=1)
        assert server.wait_for_end(job).state == pb.SUCCEEDED
        eventually(lambda: page(server.http, "/readyz")[0] == 200, what="readiness")
        assert [line["jobs"] for line in events(server, "engine.recovered")] == [job]
