"""What every system test needs: the built programs, a tiny random model, stubs made from proto/."""

import atexit
import functools
import http.client
import importlib
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("DENOISED_BIN", ROOT / "build/bin"))
# Models and stubs outlive one test program: several run against one build.
WORK = BIN.parent / "tests/system/work"

# No test writes into the home folder, nor finds what an earlier one left.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="denoised_state_")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))
SMALL = dict(height=64, width=64, num_frames=5)
# Of `tiny` longer than any test waits, on any machine: 720 tokens a step, where SMALL has 32.
SLOW = dict(height=192, width=192, num_frames=17, num_inference_steps=1000)
SLOW_FLAGS = tuple(f"--{name}={SLOW[field]}" for name, field in (
    ("height", "height"), ("width", "width"), ("frames", "num_frames"), ("steps", "num_inference_steps")))


@functools.cache
def stubs():
    """The generated modules under one name: messages and services of denoised.v1."""
    folder = tempfile.mkdtemp(prefix="denoised_stubs_")
    names = ("types", "generation", "denoise", "model", "admin")
    protos = [f"denoised/v1/{name}.proto" for name in names]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
                    f"--python_out={folder}", f"--grpc_python_out={folder}", *protos], check=True)
    sys.path.insert(0, folder)
    merged = types.SimpleNamespace()
    for name in names:
        for suffix in ("pb2", "pb2_grpc"):
            module = importlib.import_module(f"denoised.v1.{name}_{suffix}")
            vars(merged).update({k: v for k, v in vars(module).items() if not k.startswith("_")})
    return merged


def model_repository():
    """A folder with one tiny random model, written by diffusers, made once a build."""
    folder = WORK / "repository"
    if not (folder / "tiny/model_index.json").exists():
        WORK.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed, so that a broken run leaves nothing half done.
        with tempfile.TemporaryDirectory(dir=WORK) as fresh:
            subprocess.run([sys.executable, str(ROOT / "tools/random_model.py"), "--preset", "tiny",
                            f"{fresh}/repository/tiny"], check=True, stdout=subprocess.DEVNULL)
            os.rename(f"{fresh}/repository", folder)
    return folder


def clean_environment(**extra):
    environment = {k: v for k, v in os.environ.items() if k != "FASTVIDEO_ATTENTION_BACKEND"}
    return environment | extra


class Server:
    """A running `denoised` on free ports, its jobs in memory unless a flag names a state folder. Use as
    a context; leaving it stops the server."""

    def __init__(self, *flags, environment=None, repository=None, wrapper=(), stderr=None, program="denoised"):
        """`wrapper` is a command that executes the server's; `stderr` takes its log elsewhere."""
        self.log = tempfile.TemporaryFile(mode="w+")
        # "" leaves it to the program to find one.
        given = [] if repository == "" else [f"--model_repository={repository or model_repository()}"]
        usual = [flag for flag in ("--dtype=float32", "--threads=1", "--state_dir=none", "--listen=127.0.0.1:0")
                 if not any(one.startswith(flag.split("=")[0]) for one in flags)]
        command = [*wrapper, str(BIN / program), *given,
                   "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0",
                   *usual, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr or self.log, text=True,
                                        env=clean_environment(**(environment or {})))
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        line = self.process.stdout.readline() if ready else ""
        if not line.startswith("READY "):
            self.process.kill()
            raise RuntimeError(f"no READY line but {line!r}; log: {self.read_log()}")
        words = dict(word.split("=", 1) for word in line.split()[1:])
        self.ready_line = line.strip()
        self.public, self.admin, self.http = words["grpc"], words["admin"], words["http"]

    def __enter__(self):
        pb = stubs()
        self.channel = grpc.insecure_channel(self.public, CHANNEL_OPTIONS)
        self.admin_channel = grpc.insecure_channel(self.admin, CHANNEL_OPTIONS)
        self.generation = pb.GenerationServiceStub(self.channel)
        self.denoise = pb.DenoiseServiceStub(self.channel)
        self.models = pb.ModelServiceStub(self.channel)
        self.operator = pb.AdminServiceStub(self.admin_channel)
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.admin_channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:  # work or results are left: a second signal means now
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(timeout=5)
        self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def read_log(self):
        """So far. Not by seeking: the server writes where this file stands."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode(errors="replace")

    # ---- jobs

    def submit(self, prompt="a red circle", **fields):
        pb = stubs()
        return self.generation.SubmitJob(pb.GenerationRequest(prompt=prompt, **(SMALL | fields)),
                                         timeout=30)

    def get(self, job_id):
        return self.generation.GetJob(stubs().GetJobRequest(job_id=job_id), timeout=30)

    def wait_until(self, job_id, condition, timeout=120):
        """The first state for which `condition(job)` holds."""
        for job in self.generation.WatchJob(stubs().WatchJobRequest(job_id=job_id), timeout=timeout):
            if condition(job):
                return job
        raise AssertionError(f"the job ended without it: {job}")

    def wait_for_end(self, job_id, timeout=120):
        ends = (stubs().SUCCEEDED, stubs().FAILED, stubs().CANCELLED)
        return self.wait_until(job_id, lambda job: job.state in ends, timeout)

    def fetch(self, job_id, artifact_format):
        request = stubs().FetchArtifactRequest(job_id=job_id, format=artifact_format)
        return b"".join(chunk.data for chunk in self.generation.FetchArtifact(request, timeout=60))


DRAWN_PORTS = set()


def free_port():
    """One that nobody is given by asking for any: those are taken again before a server has come up. Never one twice."""
    first_given = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(min(10000, first_given - 1000), first_given)
        if port in DRAWN_PORTS:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                DRAWN_PORTS.add(port)
                return port
            except OSError:
                continue


def page(address, path, timeout=30):
    """One GET over a connection of its own: status and body."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def forwards(server, model="shapes"):
    """Forwards and their rows so far."""
    numbers = {}
    for line in page(server.http, "/metrics")[1].splitlines():
        for what in ("sum", "count"):
            if line.startswith(f'denoised_forward_batch_size_{what}{{model="{model}"}}'):
                numbers[what] = float(line.split()[-1])
    return numbers.get("count", 0), numbers.get("sum", 0)


def share_forwards(server, work, rows):
    """Does `work` until its rows have shared forwards, `rows` of them in the mean. What sharing pays is learnt from
    times, which other programs may spoil for a while: of some rounds one has to share, and all have to be right."""
    shared = []
    while not shared or max(shared) < rows:
        assert len(shared) < 12, f"rows a forward: {shared}"
        before = forwards(server)
        work()
        after = forwards(server)
        shared.append((after[1] - before[1]) / (after[0] - before[0]))


def error_of(call):
    """The RpcError that `call()` raises."""
    try:
        result = call()
        if hasattr(result, "__next__"):
            list(result)
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call was answered with OK")


def field_and_reason(error):
    """The google.rpc details of an error: the field at fault and the stable reason."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status
    field = reason = ""
    for detail in rpc_status.from_call(error).details:
        bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(bad):
            field = bad.field_violations[0].field
        elif detail.Unpack(info):
            reason = info.reason
    return field, reason


def ctl(*arguments, timeout=120, **options):
    """Runs denoisectl as typed."""
    return subprocess.run([str(BIN / "denoisectl"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=timeout, env=clean_environment(), **options)


def tensor(pb, array):
    return pb.Tensor(dtype="float32", shape=array.shape, data=array.astype("<f4").tobytes())


def metric(server, series):
    """The sample of this name and labels at /metrics; 0 where there is none."""
    found = [row for row in page(server.http, "/metrics")[1].splitlines() if row.startswith(series + " ")]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def memory(server, field="VmRSS"):
    """Bytes that the kernel says of the process."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) * 1024


def eventually(condition, timeout=20, what="it"):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout} s")
