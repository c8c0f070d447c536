"""Nothing that is read before it is written reaches a result: jobs have the same bits whatever ran before them
and whatever lies in the memory that they get, and nothing of one job is in another's files."""

import concurrent.futures
import functools
import os
import subprocess
import sys

import numpy
import pytest

from harness import BIN, ROOT, Server, error_of, field_and_reason, stubs, tensor

SHAPES = ROOT / "model_repository"
FILLER = BIN.parent / "tests/system/libfill_memory.so"
# Small integers, the customary pattern, NaN in every format.
PATTERNS = (0x00, 0xA5, 0xFF)
FORMATS = ("MP4", "GIF", "PNG", "NPY", "SAFETENSORS")


def server_whose_memory_is(pattern, *flags):
    """`pattern` None: as it comes."""
    environment = {} if pattern is None else {"LD_PRELOAD": str(FILLER), "FILL_MEMORY_WITH": str(pattern)}
    return Server("--threads=2", *flags, repository=SHAPES, environment=environment)


def submit(server, pb, prompt, seed, **fields):
    formats = [getattr(pb, name) for name in FORMATS]
    return server.submit(prompt, seed=seed, formats=formats, preview=pb.PreviewOptions(),
                         **(dict(num_inference_steps=4, num_frames=9) | fields)).id


def results(server, pb, job_id):
    """Every file of the job and its last picture, by name."""
    preview = None
    for job in server.generation.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=120):
        preview = job.preview if job.HasField("preview") else preview
    assert job.state == pb.SUCCEEDED, job.error
    assert preview is not None and preview.step == job.num_steps
    files = {name: server.fetch(job_id, getattr(pb, name)) for name in FORMATS}
    return files | {"preview": preview.png}


def job_b(server, pb):
    return results(server, pb, submit(server, pb, "a blue square moving right", seed=2))


def job_a(server, pb, **fields):
    return results(server, pb, submit(server, pb, "a red circle moving left", seed=1, **fields))


def call_b(server, pb):
    random = numpy.random.default_rng(3)
    request = pb.DenoiseRequest(latents=tensor(pb, random.standard_normal((1, 8, 2, 8, 8))),
                                timestep=tensor(pb, numpy.array([500.0])),
                                encoder_hidden_states=tensor(pb, random.standard_normal((1, 7, 128))),
                                output=pb.NEXT_LATENTS, sigma=0.9, sigma_next=0.7)
    return server.denoise.Denoise(request, timeout=60).result.data


def leave_no_numbers(server, pb):
    """A step whose values overflow: whatever it computed in holds infinities and NaN."""
    random = numpy.random.default_rng(6)
    latents, text = (3.3e38 * random.choice([-1.0, 1.0], shape) for shape in ((1, 8, 2, 8, 8), (1, 64, 128)))
    request = pb.DenoiseRequest(latents=tensor(pb, latents), timestep=tensor(pb, numpy.array([500.0])),
                                encoder_hidden_states=tensor(pb, text))
    error = error_of(lambda: server.denoise.Denoise(request, timeout=60))
    assert field_and_reason(error)[1] == "NON_FINITE", error.details()


def everything(server, pb):
    """What job B and a call give alone, after others, and beside one, by where."""
    seen = {"first": (job_b(server, pb), call_b(server, pb))}
    job_a(server, pb)
    seen["after another"] = (job_b(server, pb), call_b(server, pb))
    job_a(server, pb, height=128, width=128, num_frames=17)
    seen["after a larger one"] = (job_b(server, pb), call_b(server, pb))
    leave_no_numbers(server, pb)
    seen["after one without numbers"] = (job_b(server, pb), call_b(server, pb))
    with concurrent.futures.ThreadPoolExecutor() as beside:
        other = beside.submit(job_a, server, pb, num_inference_steps=8)
        seen["beside one"] = (job_b(server, pb), call_b(server, pb))
        other.result()
    return seen


@functools.cache
def expected(flags):
    """With memory as it comes."""
    with server_whose_memory_is(None, *flags) as server:
        return job_b(server, stubs()), call_b(server, stubs())


def differing(found, wanted):
    return [name for name in wanted if found[name] != wanted[name]]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_filler_fills_what_is_handed_out_large_and_small(pattern):
    program = ("import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p\n"
               "for size in (24, 1 << 20):\n"
               "    print(set(ctypes.string_at(c.malloc(ctypes.c_size_t(size)), size)))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env=os.environ | {"LD_PRELOAD": str(FILLER), "FILL_MEMORY_WITH": str(pattern)})
    assert done.stdout.split() == [f"{{{pattern}}}"] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_result_has_the_same_bits_whatever_ran_before_and_lies_in_memory(pb, pattern, dtype):
    flags = (f"--dtype={dtype}",)
    files, step = expected(flags)
    with server_whose_memory_is(pattern, *flags) as server:
        for where, (found, stepped) in everything(server, pb).items():
            assert differing(found, files) == [], where
            assert stepped == step, where


@pytest.mark.parametrize("linear", ["exact", "int8"])
def test_so_it_is_with_other_numerics(pb, linear):
    flags = (f"--linear={linear}",)
    files, step = expected(flags)
    with server_whose_memory_is(0xFF, *flags) as server:
        job_a(server, pb)
        leave_no_numbers(server, pb)
        assert differing(job_b(server, pb), files) == []
        assert call_b(server, pb) == step


def pieces(data, size=16):
    """Every piece of so many bytes at a number's boundary that is worth looking for: most of its bytes differ."""
    rows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(data, numpy.uint8), size)[::4]
    found = {row.tobytes() for row in rows}
    return {piece for piece in found if len(set(piece)) >= size // 2}


def test_no_bytes_of_one_job_are_in_the_files_of_another(pb):
    with server_whose_memory_is(0xA5) as server:
        random = numpy.random.default_rng(4)
        noise = random.standard_normal((1, 8, 3, 16, 16)).astype("<f4")
        first = job_a(server, pb, latents=tensor(pb, noise))
        second = job_b(server, pb)
    secret = pieces(noise.tobytes()) | pieces(first["SAFETENSORS"][-noise.nbytes:]) | pieces(first["NPY"][128:])
    assert len(secret) > 1000
    for name, data in second.items():
        windows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(data, numpy.uint8), 16)
        assert not secret & {row.tobytes() for row in windows}, name
        assert b"\xa5" * 8 not in data, name
