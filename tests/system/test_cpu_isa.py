"""--cpu_isa as users meet it: what a pin allows, to our kernels and to LibTorch's libraries."""

import re
import subprocess

import harness
import numpy
import pytest
import safetensors.numpy

LEVELS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
ONEDNN_NAMES = {  # how oneDNN calls them in its verbose line
    "avx2": "Intel AVX2", "avx512": "AVX512DQ extensions", "avx512_vnni": "Intel DL Boost",
    "avx512_bf16": "bfloat16 support", "amx": "AMX"}


def ctl(*arguments, **environment):
    return subprocess.run([str(harness.BIN / "denoisectl"), *arguments], capture_output=True, text=True, timeout=300,
                          env=harness.clean_environment(**environment))


def best_level():
    """The machine's, as a refusal of the highest names it."""
    done = ctl("attend", "--backend=REFERENCE", "--in=/nowhere", "--out=/nowhere", "--cpu_isa=amx")
    found = re.search(r"this machine has at most (\w+)", done.stderr)
    return found.group(1) if found else "amx"


def levels():
    return LEVELS[:LEVELS.index(best_level()) + 1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    generator = numpy.random.default_rng(0)
    path = tmp_path_factory.mktemp("attend") / "in.safetensors"
    safetensors.numpy.save_file(
        {name: generator.standard_normal((1, 200, 2, 64), dtype=numpy.float32) for name in "qkv"}, path)
    return path


def attend(inputs, tmp_path, backend, level, **environment):
    out = tmp_path / f"{backend}_{level}.safetensors"
    done = ctl("attend", f"--backend={backend}", f"--in={inputs}", f"--out={out}", f"--cpu_isa={level}",
               **environment)
    assert done.returncode == 0, done.stderr
    return safetensors.numpy.load_file(out)["o"]


@pytest.mark.parametrize("backend", ["FLASH_ATTN", "SAGE_ATTN", "SAGE_ATTN_THREE", "ATTN_QAT_INFER"])
def test_every_level_of_the_machine_serves(inputs, tmp_path, backend):
    exact = attend(inputs, tmp_path, "REFERENCE", "auto")
    for level in levels():
        got = attend(inputs, tmp_path, backend, level)
        similarity = (got * exact).sum() / numpy.linalg.norm(got) / numpy.linalg.norm(exact)
        assert similarity > (0.98 if backend in ("SAGE_ATTN_THREE", "ATTN_QAT_INFER") else 0.999)


@pytest.mark.parametrize("backend, alike", [
    ("FLASH_ATTN", LEVELS), ("SAGE_ATTN", LEVELS[:3]), ("SAGE_ATTN_THREE", LEVELS), ("ATTN_QAT_INFER", LEVELS)])
def test_float32_has_the_same_bits_on_these_levels(inputs, tmp_path, backend, alike):
    floor = attend(inputs, tmp_path, backend, "avx2")
    for level in levels():
        if level in alike:
            assert attend(inputs, tmp_path, backend, level).tobytes() == floor.tobytes(), level


def test_the_environment_from_outside_counts_for_nothing(inputs, tmp_path):
    pinned = attend(inputs, tmp_path, "TORCH_SDPA", "auto")
    lesser = attend(inputs, tmp_path, "TORCH_SDPA", "auto", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41",
                    MKL_CBWR="COMPATIBLE", ONEDNN_DEFAULT_FPMATH_MODE="BF16")
    assert lesser.tobytes() == pinned.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_onednn_runs_what_the_pin_allows(tmp_path, level):
    if level not in levels():
        pytest.skip(f"this machine has at most {best_level()}")
    done = ctl("run", "a red circle", "-o", str(tmp_path / "out.npy"), "--steps=1", "--seed=1",
               "--height=64", "--width=64", "--frames=5", f"--model_repository={harness.model_repository()}",
               f"--cpu_isa={level}", "--linear=exact", ONEDNN_VERBOSE="1")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"cpu,isa:(.*)", done.stdout + done.stderr)
    assert lines and ONEDNN_NAMES[level] in lines[0]
    if level in ("avx2", "avx512", "avx512_vnni"):
        assert "bfloat16" not in lines[0]


@pytest.mark.skipif(best_level() == "amx", reason="this machine has every level")
@pytest.mark.parametrize("program, arguments", [
    ("denoised", ("--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0")),
    ("denoisectl", ("run", "x", "-o", "/nowhere/out.npy"))])
def test_above_the_machine_is_refused_naming_its_best(program, arguments):
    done = subprocess.run([str(harness.BIN / program), *arguments, "--cpu_isa=amx",
                           f"--model_repository={harness.model_repository()}"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 2
    assert f"--cpu_isa: wanted amx; this machine has at most {best_level()} (" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["AVX2", "sse4", ""])
def test_an_unknown_level_is_wrong_use(value):
    done = ctl("attend", "--backend=REFERENCE", "--in=/nowhere", "--out=/nowhere", f"--cpu_isa={value}")
    assert done.returncode == 2 and "avx512_vnni" in done.stderr
