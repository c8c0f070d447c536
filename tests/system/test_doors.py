"""Doors that stay open: crowds of connections, watchers and jobs, and requests that cost too much."""

import http.client
import random
import socket
import threading
import time

import grpc
import pytest
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import CHANNEL_OPTIONS, SLOW, Server, error_of, eventually, field_and_reason, memory, metric, page


def connect(address, data=b""):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    if data:
        connection.sendall(data)
    return connection


def healthy(address):
    """A health check over a connection of its own."""
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(address, options) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def status(server, path):
    """Within a second, as a probe wants it."""
    try:
        return page(server.http, path, timeout=1)[0]
    except OSError:
        return None


def assert_answers(server, path):
    """As a probe that forgives two misses in a row, so that another's burst on the machine is none of the server's."""
    seen = []
    while len(seen) < 3 and 200 not in seen:
        seen.append(status(server, path))
    assert 200 in seen, (path, seen)


def threads_of(server):
    with open(f"/proc/{server.process.pid}/status", encoding="utf8") as status:
        return int(next(line for line in status if line.startswith("Threads")).split()[1])


# ---- HTTP

@pytest.mark.parametrize("scrapers", [4, 40])
def test_keep_alive_scrapers_do_not_silence_the_probe(server, scrapers):
    stop = threading.Event()

    def scrape():
        connection = http.client.HTTPConnection(server.http, timeout=20)
        while not stop.is_set():
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            stop.wait(1)
        connection.close()

    crowd = [threading.Thread(target=scrape) for _ in range(scrapers)]
    for scraper in crowd:
        scraper.start()
    try:
        for _ in range(10):
            assert_answers(server, "/healthz")
            assert_answers(server, "/readyz")
            time.sleep(0.2)
    finally:
        stop.set()
        for scraper in crowd:
            scraper.join()


def test_idle_connections_to_the_http_port_make_nothing_deaf():
    """More of them than the process may open files."""
    with Server(wrapper=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")) as server:
        before = threads_of(server)
        idle = [connect(server.http) for _ in range(200)]
        idle += [connect(server.http, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(100)]
        idle += [connect(server.http, b"GET /metrics HTTP/1.1\r\nHos") for _ in range(100)]
        for _ in range(5):
            assert_answers(server, "/healthz")
            assert_answers(server, "/readyz")
            assert healthy(server.public) and healthy(server.admin)
        assert threads_of(server) < before + 10, "an idle connection has no thread"
        assert server.wait_for_end(server.submit(num_inference_steps=1).id).state == 3
        for connection in idle:
            connection.close()
        assert healthy(server.public)
        assert metric(server, 'denoised_connections_refused_total{listener="http"}') > 0


def test_a_crowd_at_the_grpc_port_leaves_admin_and_health_alone_and_goes_away():
    with Server(wrapper=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")) as server:
        crowd = [connect(server.public) for _ in range(400)]
        assert healthy(server.admin)
        assert_answers(server, "/healthz")
        eventually(lambda: status(server, "/readyz") == 503, timeout=10, what="that a new client would not get in")
        for connection in crowd:
            connection.close()
        eventually(lambda: healthy(server.public), timeout=10, what="an answer after the crowd")
        eventually(lambda: page(server.http, "/readyz")[0] == 200, what="readiness")


def test_silent_connections_to_the_grpc_port_are_ended():
    with Server("--max_connections=20") as server:
        crowd = [connect(server.public) for _ in range(20)]
        assert not healthy(server.public)
        eventually(lambda: healthy(server.public), timeout=20, what="the end of the silent ones")
        del crowd


def test_broken_http_is_answered_or_ended_and_the_server_lives(server):
    random.seed(1)
    pieces = [b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n", b"Host: x", b"\r\n\r\n", b"\0", b"\xff", b"POST ",
              b"Content-Length: 5", b"Transfer-Encoding: chunked", b"A" * 20000, b":", b" ", b"PRI * HTTP/2.0"]
    for _ in range(200):
        with connect(server.http, b"".join(random.choices(pieces, k=8)) + b"\r\n\r\n") as connection:
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert_answers(server, "/healthz")


# ---- requests

def large_struct(size):
    values = struct_pb2.ListValue(values=[struct_pb2.Value(number_value=1)] * 1000)
    one = struct_pb2.Value(list_value=values)
    count = size // one.ByteSize()
    return struct_pb2.Struct(fields={"a": struct_pb2.Value(list_value=struct_pb2.ListValue(values=[one] * count))})


@pytest.mark.parametrize("method", ["SubmitJob", "Generate", "Denoise", "ExplainSelection"])
def test_a_large_struct_is_refused_before_it_costs_anything(server, pb, method):
    # The admin port takes no message of more than 1 MiB in the first place.
    admin = method == "ExplainSelection"
    attention = pb.AttentionOptions(parameters=large_struct(900 << 10 if admin else 55 << 20))
    calls = {"SubmitJob": lambda: server.generation.SubmitJob(pb.GenerationRequest(attention=attention), timeout=60),
             "Generate": lambda: server.generation.Generate(pb.GenerationRequest(attention=attention), timeout=60),
             "Denoise": lambda: server.denoise.Denoise(pb.DenoiseRequest(attention=attention), timeout=60),
             "ExplainSelection": lambda: server.operator.ExplainSelection(
                 pb.ExplainSelectionRequest(attention=attention), timeout=60)}
    before = memory(server, "VmHWM")
    error = error_of(calls[method])
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0] == "attention.parameters"
    assert memory(server, "VmHWM") < before + (400 << 20), "a few times the message, not thirty"


@pytest.mark.parametrize("field, value", [
    ("prompt", "x" * (20 << 20)), ("negative_prompt", "x" * (1 << 20)), ("formats", [1] * (5 << 20)),
    ("model", "m" * (1 << 20))])
def test_everything_but_tensors_is_small(server, pb, field, value):
    error = error_of(lambda: server.generation.SubmitJob(pb.GenerationRequest(**{field: value}), timeout=60))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0] == field


def test_large_tensors_are_still_welcome(server, pb):
    tensor = pb.Tensor(dtype="float32", shape=[5 << 20], data=bytes(20 << 20))
    error = error_of(lambda: server.generation.SubmitJob(pb.GenerationRequest(prompt="x", latents=tensor),
                                                         timeout=60))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0].startswith("latents"), "the model's own check refused its shape"


# ---- many jobs and watchers

def test_pages_of_long_prompts_fit_clients_with_default_limits(pb):
    with Server("--max_queued_jobs=200") as server, grpc.insecure_channel(server.public) as channel:
        client = pb.GenerationServiceStub(channel)  # receives 4 MiB, as every client does by default
        ids = [client.SubmitJob(pb.GenerationRequest(prompt="x" * 65536, **SLOW), timeout=30).id
               for _ in range(90)]
        for job_id in ids:
            client.CancelJob(pb.CancelJobRequest(job_id=job_id), timeout=30)
        for size in (0, 3, 1000):
            seen, token, pages = [], "", 0
            while True:
                reply = client.ListJobs(pb.ListJobsRequest(page_size=size, page_token=token), timeout=30)
                assert reply.ByteSize() < 4 << 20 and 0 < len(reply.jobs) <= (size or 100)
                seen += [job.id for job in reply.jobs]
                token, pages = reply.next_page_token, pages + 1
                if not token:
                    break
            assert seen == ids[::-1], size
            assert pages > 1


def test_watchers_of_one_connection_do_not_block_its_other_calls(server, pb):
    job = server.submit(**SLOW)
    watchers = [server.generation.WatchJob(pb.WatchJobRequest(job_id=job.id)) for _ in range(300)]
    for watcher in watchers:
        next(watcher)
    start = time.monotonic()
    server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=5)
    assert time.monotonic() - start < 2
    for watcher in watchers:
        *_, last = watcher
        assert last.state == pb.CANCELLED


def test_watchers_beyond_the_limit_are_refused_and_the_cancel_still_goes_through(pb):
    with Server("--max_streams_per_connection=32") as server:
        job = server.submit(**SLOW)
        watchers = [server.generation.WatchJob(pb.WatchJobRequest(job_id=job.id)) for _ in range(28)]
        for watcher in watchers:
            next(watcher)
        for _ in range(10):
            error = error_of(lambda: server.generation.WatchJob(pb.WatchJobRequest(job_id=job.id), timeout=20))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert field_and_reason(error)[1] == "TOO_MANY_STREAMS"
        server.generation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=5)


def test_holds_of_one_connection_do_not_block_their_release(server, pb):
    holds = [server.operator.HoldBackend(pb.HoldBackendRequest(backend="REFERENCE")) for _ in range(150)]
    for hold in holds:
        next(hold)
    released = server.operator.ReleaseForce(pb.ReleaseForceRequest(all=True), timeout=5)
    assert released.released == 150
    for hold in holds:
        assert list(hold) == []


def test_a_flood_of_cancelled_jobs_pushes_out_nobodys_result(pb):
    with Server("--max_finished_jobs=16") as server:
        precious = server.submit(num_inference_steps=1, formats=[pb.NPY])
        assert server.wait_for_end(precious.id).state == pb.SUCCEEDED
        blocker = server.submit(**SLOW)
        for _ in range(100):
            server.generation.CancelJob(pb.CancelJobRequest(job_id=server.submit(**SLOW).id), timeout=10)
        assert len(server.fetch(precious.id, pb.NPY)) > 1000
        server.generation.CancelJob(pb.CancelJobRequest(job_id=blocker.id), timeout=10)


def test_a_job_is_not_forgotten_under_its_reader(pb):
    with Server("--max_finished_jobs=1") as server:
        job = server.submit(formats=[pb.NPY], width=256, height=256, num_frames=17, num_inference_steps=1)
        done = server.wait_for_end(job.id)
        chunks = server.generation.FetchArtifact(pb.FetchArtifactRequest(job_id=job.id), timeout=60)
        got = len(next(chunks).data)
        for _ in range(3):
            server.wait_for_end(server.submit(num_inference_steps=1).id)
        assert server.get(job.id).state == pb.SUCCEEDED
        assert got + sum(len(chunk.data) for chunk in chunks) == done.artifacts[0].size_bytes
        server.wait_for_end(server.submit(num_inference_steps=1).id)
        error = error_of(lambda: server.get(job.id))
        assert error.code() == grpc.StatusCode.NOT_FOUND
