"""Sessions by a real client: latents that stay in the server, on the checkpoint that ships. What a session is
held against is the job with the same request, bit for bit."""

import json
import queue
import subprocess
import sys
import threading

import grpc
import harness
import numpy
import pytest

SHAPES = harness.ROOT / "model_repository"
JOB = dict(prompt="a red circle moving left", seed=3, num_inference_steps=8, width=64, height=64, num_frames=9)
END = object()


@pytest.fixture(scope="module")
def shapes():
    with harness.Server("--threads=2", "--session_idle=1h", repository=SHAPES) as running:
        yield running


class Stream:
    """A stream of sessions: requests by keyword, responses by tag."""

    def __init__(self, server, timeout=120):
        self.pb = harness.stubs()
        self.requests = queue.Queue()
        self.call = server.denoise.Session(iter(self.requests.get, END), timeout=timeout)
        self.tag = 0
        self.early = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.requests.put(END)
        self.call.cancel()

    def send(self, session="", **verb):
        self.tag += 1
        self.requests.put(self.pb.SessionRequest(session_id=session, tag=self.tag, **verb))
        return self.tag

    def receive(self, tag):
        while tag not in self.early:
            response = next(self.call)
            self.early[response.tag] = response
        return self.early.pop(tag)

    def ask(self, session="", **verb):
        return self.receive(self.send(session, **verb))

    def do(self, session="", **verb):
        response = self.ask(session, **verb)
        assert not response.HasField("error"), response.error
        return response

    def open(self, **fields):
        return self.do(open=self.pb.SessionOpen(**fields))

    def step(self, count, session=""):
        return self.do(session, step=self.pb.SessionStep(count=count))

    def read(self, session=""):
        return self.do(session, read=self.pb.SessionRead()).latents.data

    def fork(self, session=""):
        return self.do(session, fork=self.pb.SessionFork()).session_id


def latents_of_job(server, pb, **more):
    """The numbers of the job's safetensors artifact, and the job."""
    job = server.generation.SubmitJob(pb.GenerationRequest(formats=[pb.SAFETENSORS], **(JOB | more)), timeout=30)
    done = server.wait_for_end(job.id)
    assert done.state == pb.SUCCEEDED, done.error
    data = server.fetch(job.id, pb.SAFETENSORS)
    size = int.from_bytes(data[:8], "little")
    (entry,) = [e for name, e in json.loads(data[8:8 + size]).items() if name != "__metadata__"]
    return data[8 + size:][slice(*entry["data_offsets"])], done


@pytest.fixture(scope="module")
def wanted(shapes, pb):
    return latents_of_job(shapes, pb)


def open_sessions(server):
    for line in harness.page(server.http, "/metrics")[1].splitlines():
        if line.startswith("denoised_sessions_open "):
            return int(float(line.split()[-1]))
    raise AssertionError("no such gauge")


def test_stepped_in_pieces_it_has_the_bits_and_the_fingerprint_of_the_job(shapes, pb, wanted):
    with Stream(shapes) as stream:
        opened = stream.open(**JOB)
        assert opened.num_steps == 8 and opened.step == 0
        assert list(opened.opened.latents_shape) == [1, 8, 3, 16, 16]
        assert opened.opened.parameters.seed == 3 and len(opened.opened.sigmas) == 9
        assert opened.sigma == opened.opened.sigmas[0]
        for count in (1, 3, 1):
            assert stream.step(count).stepped.seconds > 0
        last = stream.step(3)
        assert last.step == 8 and last.sigma == 0
        assert stream.read() == wanted[0]
        assert last.stepped.receipt.fingerprint == wanted[1].receipt.fingerprint


def test_forks_and_their_origin_end_with_the_bits_of_the_job_beside_running_jobs(shapes, pb, wanted):
    beside = [shapes.generation.SubmitJob(
        pb.GenerationRequest(formats=[pb.SAFETENSORS], **(JOB | dict(seed=seed, num_inference_steps=40))), timeout=30)
        for seed in range(3)]
    with Stream(shapes) as stream:
        stream.open(**JOB)
        stream.step(1)
        early = stream.fork()
        stream.step(3)
        late = stream.fork()
        tags = [stream.send(one, step=pb.SessionStep(count=count)) for one, count in ((early, 7), ("", 4), (late, 4))]
        for tag in tags:
            assert stream.receive(tag).step == 8
        assert stream.read(early) == stream.read() == stream.read(late) == wanted[0]
    for job in beside:
        assert shapes.wait_for_end(job.id).state == pb.SUCCEEDED


def test_a_fork_goes_its_own_way_after_set_and_write(shapes, pb, wanted):
    with Stream(shapes) as stream:
        stream.open(**JOB)
        stream.step(4)
        guided, written = stream.fork(), stream.fork()
        stream.do(guided, set=pb.SessionSet(guidance_scale=1.0))
        noise = numpy.random.default_rng(0).standard_normal((1, 8, 3, 16, 16))
        stream.do(written, write=pb.SessionWrite(latents=harness.tensor(pb, noise)))
        ends = {one: (stream.step(4, one), stream.read(one)) for one in ("", guided, written)}
        assert ends[""][1] == wanted[0]
        assert len({latents for _, latents in ends.values()}) == 3
        assert len({response.stepped.receipt.fingerprint for response, _ in ends.values()}) == 3
        # What was written is what counts: the same written elsewhere ends the same.
        other = stream.fork()
        stream.do(other, write=pb.SessionWrite(latents=harness.tensor(pb, noise), step=4))
        stream.step(4, other)
        assert stream.read(other) == ends[written][1]


def test_guidance_set_before_the_first_step_is_that_of_the_job(shapes, pb):
    for opened, set_to in ((1.0, 3.0), (3.0, 1.0)):
        with Stream(shapes) as stream:
            stream.open(**(JOB | dict(guidance_scale=opened)))
            stream.do(set=pb.SessionSet(guidance_scale=set_to))
            stream.step(8)
            assert stream.read() == latents_of_job(shapes, pb, guidance_scale=set_to)[0]


def test_what_is_read_and_written_back_with_history_changes_nothing(shapes, pb, wanted):
    with Stream(shapes) as stream:
        shape = stream.open(**JOB).opened.latents_shape
        for _ in range(4):
            stream.step(2)
            same = pb.Tensor(dtype="float32", shape=shape, data=stream.read())
            stream.do(write=pb.SessionWrite(latents=same, keep_history=True))
        assert stream.read() == wanted[0]


def test_initial_latents_that_are_the_seeds_noise_give_the_seeds_bits(shapes, pb, wanted):
    with Stream(shapes) as stream:
        shape = stream.open(**JOB).opened.latents_shape
        noise = pb.Tensor(dtype="float32", shape=shape, data=stream.read())
        sizes = ("width", "height", "num_frames", "seed")
        given = stream.open(latents=noise, **{k: v for k, v in JOB.items() if k not in sizes})
        assert (given.opened.parameters.width, given.opened.parameters.num_frames) == (64, 9)
        stream.step(8, given.session_id)
        assert stream.read(given.session_id) == wanted[0]


def test_a_step_from_embeddings_is_the_step_that_denoise_takes(shapes, pb):
    config = json.loads((SHAPES / "shapes/transformer/config.json").read_text())
    noise = numpy.random.default_rng(1)
    latents = noise.standard_normal((1, config["in_channels"], 3, 16, 16))
    text, away = noise.standard_normal((2, 1, 12, config["text_dim"]))
    common = dict(latents=harness.tensor(pb, latents), encoder_hidden_states=harness.tensor(pb, text),
                  negative_encoder_hidden_states=harness.tensor(pb, away), guidance_scale=2.5)
    with Stream(shapes) as stream:
        opened = stream.open(sigmas=[0.9, 0.7, 0.2], **common)
        assert numpy.allclose(opened.opened.sigmas, [0.9, 0.7, 0.2, 0])
        assert opened.opened.parameters.max_sequence_length == 12
        assert stream.step(1).sigma == pytest.approx(0.7)
        stepped = numpy.frombuffer(stream.read(), "<f4")
        stream.step(2)
    reply = shapes.denoise.Denoise(pb.DenoiseRequest(
        timestep=pb.Tensor(dtype="int64", shape=[1], data=numpy.array([900], "<i8").tobytes()),
        output=pb.NEXT_LATENTS, sigma=0.9, sigma_next=0.7, **common), timeout=60)
    numpy.testing.assert_allclose(stepped, numpy.frombuffer(reply.result.data, "<f4"), rtol=1e-3, atol=1e-4)


def test_sessions_that_step_at_once_share_forwards(shapes, pb):
    job = dict(JOB, num_inference_steps=60, guidance_scale=1.0)
    with Stream(shapes) as one, Stream(shapes) as two:
        for stream in (one, two):
            stream.open(**job)
            stream.step(1)
        fork = one.fork()
        before = harness.forwards(shapes)
        tags = [(one, one.send(step=pb.SessionStep(count=59))), (two, two.send(step=pb.SessionStep(count=59))),
                (one, one.send(fork, step=pb.SessionStep(count=59)))]
        for stream, tag in tags:
            assert stream.receive(tag).step == 60
        after = harness.forwards(shapes)
        assert (after[1] - before[1]) / (after[0] - before[0]) > 1
        assert one.read() == one.read(fork) == two.read()


def bad_requests(pb):
    nan = numpy.full((1, 8, 3, 16, 16), numpy.nan)
    small = numpy.zeros((1, 8, 3, 16, 8))
    strict = pb.AttentionOptions(backend="NO_ATTENTION", policy=pb.STRICT)
    return {
        "too many steps": (dict(step=pb.SessionStep(count=9)), "count", "NO_STEPS_LEFT"),
        "no steps": (dict(step=pb.SessionStep(count=0)), "count", None),
        "nan": (dict(write=pb.SessionWrite(latents=harness.tensor(pb, nan))), "latents", "NON_FINITE"),
        "shape": (dict(write=pb.SessionWrite(latents=harness.tensor(pb, small))), "latents.shape", None),
        "dtype": (dict(write=pb.SessionWrite(latents=pb.Tensor(dtype="int32", shape=[1], data=b"1234"))),
                  "latents.dtype", None),
        "cut": (dict(write=pb.SessionWrite(latents=pb.Tensor(dtype="float32", shape=[2], data=b"1234"))),
                "latents.data", None),
        "nothing to write": (dict(write=pb.SessionWrite()), "write", None),
        "step past the end": (dict(write=pb.SessionWrite(step=9)), "step", None),
        "negative step": (dict(write=pb.SessionWrite(step=-1)), "step", None),
        "history and step": (dict(write=pb.SessionWrite(step=1, keep_history=True)), "keep_history", None),
        "nothing to set": (dict(set=pb.SessionSet()), "set", None),
        "guidance": (dict(set=pb.SessionSet(guidance_scale=float("nan"))), "guidance_scale", None),
        "backend": (dict(set=pb.SessionSet(attention=pb.AttentionOptions(backend="fast"))), "attention.backend", None),
        "strict": (dict(set=pb.SessionSet(attention=strict)), "attention.backend", "BACKEND_REFUSED"),
        "another's session": (dict(session="0" * 32, read=pb.SessionRead()), "session_id", "SESSION_NOT_FOUND"),
        "a second open": (dict(open=pb.SessionOpen(prompt="a", height=65)), "height", None),
        "no verb": (dict(), "verb", None),
    }


def test_bad_requests_name_their_field_and_leave_the_session_as_it_was(shapes, pb, wanted):
    with Stream(shapes) as stream:
        stream.open(**JOB)
        for name, (verb, field, reason) in bad_requests(pb).items():
            response = stream.ask(**verb)
            assert response.HasField("error"), name
            assert response.error.field == field, f"{name}: {response.error}"
            assert reason is None or response.error.reason == reason, name
        stream.step(8)
        assert stream.read() == wanted[0]


@pytest.mark.parametrize("fields, field", [
    (dict(prompt="a", height=65), "height"),
    (dict(prompt="a", num_inference_steps=0), "num_inference_steps"),
    (dict(prompt="a", sigmas=[0.5, 0.6]), "sigmas"),
    (dict(prompt="a", sigmas=[0.5], flow_shift=3.0), "flow_shift"),
    (dict(prompt="a", model="nope"), "model"),
    (dict(prompt="a", tenant="no blanks"), "tenant"),
])
def test_an_open_that_is_refused_ends_the_stream_by_name(shapes, pb, fields, field):
    with Stream(shapes) as stream:
        stream.send(open=pb.SessionOpen(**fields))
        error = harness.error_of(lambda: stream.call)
        assert field in error.details()
        codes = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert error.code() in codes
    harness.eventually(lambda: open_sessions(shapes) == 0)  # nor is one left of the test before


def test_the_first_request_is_an_open(shapes, pb):
    with Stream(shapes) as stream:
        assert stream.ask(step=pb.SessionStep()).error.reason == "SESSION_NOT_FOUND"
        stream.open(**JOB)
        assert stream.step(1).step == 1


def test_a_session_that_is_closed_is_gone_and_the_last_one_ends_the_stream(shapes, pb):
    with Stream(shapes) as stream:
        stream.open(**JOB)
        fork = stream.fork()
        harness.eventually(lambda: open_sessions(shapes) == 2)
        assert stream.do(close=pb.SessionClose()).HasField("closed")
        assert stream.ask(read=pb.SessionRead()).error.reason == "SESSION_NOT_FOUND"
        stream.do(fork, close=pb.SessionClose())
        with pytest.raises(StopIteration):
            next(stream.call)
        assert stream.call.code() == grpc.StatusCode.OK
    assert open_sessions(shapes) == 0


CLIENT = """
import sys
sys.path[:0] = sys.argv[2:]
import grpc, harness, queue
pb = harness.stubs()
requests = queue.Queue()
call = pb.DenoiseServiceStub(grpc.insecure_channel(sys.argv[1])).Session(iter(requests.get, None))
requests.put(pb.SessionRequest(open=pb.SessionOpen(prompt="a red circle", num_inference_steps=1000)))
next(call)
requests.put(pb.SessionRequest(fork=pb.SessionFork()))
next(call)
requests.put(pb.SessionRequest(step=pb.SessionStep(count=1000)))
print("STEPS", flush=True)
next(call)
"""


def test_a_client_that_is_killed_frees_its_sessions_in_the_middle_of_a_step(shapes, pb):
    client = subprocess.Popen([sys.executable, "-c", CLIENT, shapes.public, *sys.path], text=True,
                              stdout=subprocess.PIPE)
    assert client.stdout.readline() == "STEPS\n"
    harness.eventually(lambda: open_sessions(shapes) == 2, what="two sessions")
    client.kill()
    client.wait()
    harness.eventually(lambda: open_sessions(shapes) == 0, what="the end of both")


def test_sessions_that_nobody_asks_end_by_name():
    pb = harness.stubs()
    with harness.Server("--session_idle=5s", "--max_sessions=2", repository=SHAPES) as server:
        with Stream(server) as stream:
            stream.open(**JOB)
            fork = stream.fork()
            assert stream.ask(fork=pb.SessionFork()).error.reason == "TOO_MANY_SESSIONS"
            for _ in range(4):
                threading.Event().wait(1.5)
                stream.step(1, fork)  # keeps both
            assert stream.step(1).step == 1
            error = harness.error_of(lambda: stream.call)
            assert error.code() == grpc.StatusCode.ABORTED
            assert harness.field_and_reason(error)[1] == "SESSION_IDLE"
        harness.eventually(lambda: open_sessions(server) == 0)


def test_draining_ends_sessions_by_name_after_what_was_asked():
    pb = harness.stubs()
    with harness.Server(repository=SHAPES) as server:
        with Stream(server) as stream:
            stream.open(**JOB)
            steps = stream.send(step=pb.SessionStep(count=8))
            harness.eventually(lambda: harness.forwards(server)[0] > 0, what="its first step")
            server.operator.Drain(pb.DrainRequest(), timeout=30)
            answer = stream.receive(steps)
            assert answer.HasField("stepped") or answer.error.reason == "DRAINING"
            error = harness.error_of(lambda: stream.call)
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert harness.field_and_reason(error)[1] == "DRAINING"
