"""Who wishes for a backend, with which parameters, and that receipts say what really ran."""

import json
import shutil
import subprocess

import grpc
import pytest
from google.protobuf import json_format, struct_pb2

from harness import BIN, SMALL, Server, clean_environment, ctl, error_of, field_and_reason, model_repository

VSA = "VIDEO_SPARSE_ATTN"
DEFAULT = {"sparsity": 0.5, "dense_layers": [1]}


def struct(values):
    message = struct_pb2.Struct()
    json_format.ParseDict(values, message)
    return message


def parameters_of(entry):
    return json_format.MessageToDict(entry.parameters)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The tiny model once as it is ("tiny", the default) and once with a default backend of its own."""
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(model_repository() / "tiny", repository / "tiny")
    shutil.copytree(model_repository() / "tiny", repository / "vsa")
    own = json.loads((repository / "vsa/denoised.json").read_text())
    own |= {"attention_backend": VSA, "attention_parameters": DEFAULT}
    (repository / "vsa/denoised.json").write_text(json.dumps(own))
    with Server(repository=repository) as running:
        yield running


def self_rows(job):
    assert job.state == 3, job.error
    return [entry for entry in job.receipt.entries if entry.role == "self"]


def run(server, steps=2, **fields):
    return server.wait_for_end(server.submit(num_inference_steps=steps, seed=3, **fields).id)


def vsa(pb, **parameters):
    return pb.AttentionOptions(backend=VSA, parameters=struct(parameters))


def test_naming_the_models_default_keeps_its_parameters_and_giving_some_replaces_them(server, pb):
    default, = {row.source for row in self_rows(run(server, model="vsa"))}
    assert default == "model_default"
    for options, sparsity, layers in ((None, 0.5, [1]), (pb.AttentionOptions(backend=VSA), 0.5, [1]),
                                      (vsa(pb, sparsity=0.25), 0.25, []), (vsa(pb), 0.8, [])):
        rows = [row for row in self_rows(run(server, model="vsa", attention=options)) if row.ran == VSA]
        assert len(rows) == 1
        assert parameters_of(rows[0])["sparsity"] == sparsity
        assert parameters_of(rows[0])["dense_layers"] == layers


def test_source_has_one_spelling_on_the_wire_in_metrics_and_in_the_client(server, pb, tmp_path):
    assert {row.source for row in self_rows(run(server, model="vsa"))} == {"model_default"}
    query = pb.ExplainSelectionRequest(model="vsa", height=64, width=64, num_frames=5)
    role = next(r for r in server.operator.ExplainSelection(query, timeout=30).roles if r.role == "self")
    assert (role.would_run, role.source) == (VSA, "model_default")
    done = ctl("generate", "p", "-o", tmp_path / "a.npy", "--model=vsa", "--height=64", "--width=64",
               "--frames=5", "--steps=1", f"--server={server.public}")
    assert done.returncode == 0, done.stderr
    assert "the model's default" in done.stdout and VSA in done.stdout
    done = ctl("explain", "--model=vsa", f"--admin={server.admin}")
    assert "the model's default" in done.stdout.split("cross:")[0]
    page = subprocess.run(["curl", "-s", "--noproxy", "*", f"http://{server.http}/metrics"],
                          capture_output=True, text=True, timeout=30).stdout
    assert 'denoised_backend_switch_total{cause="model_default"} 0' in page
    assert "model default" not in page


def test_force_carries_parameters(server, pb):
    request = pb.ForceBackendRequest(backend=VSA, parameters=struct({"sparsity": 0.75, "tile": [1, 4, 4]}))
    lease = server.operator.ForceBackend(request, timeout=30)
    assert json_format.MessageToDict(lease.parameters) == {"sparsity": 0.75, "tile": [1, 4, 4]}
    assert server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases[0].parameters == lease.parameters
    row, = self_rows(run(server))
    assert (row.ran, row.source, row.lease_id) == (VSA, "force", lease.id)
    assert parameters_of(row) == {"coarse": False, "dense_first_steps": 0, "dense_layers": [],
                                  "sparsity": 0.75, "tile": [1, 4, 4]}


@pytest.mark.parametrize("parameters, field", [({"sparse": 1}, "parameters.sparse"),
                                               ({"sparsity": 2}, "parameters.sparsity"),
                                               ({"tile": [0, 1, 1]}, "parameters.tile")])
def test_force_with_parameters_that_its_backend_refuses_is_refused_by_key(server, pb, parameters, field):
    for make in (lambda p: server.operator.ForceBackend(pb.ForceBackendRequest(backend=VSA, parameters=p), timeout=30),
                 lambda p: server.operator.HoldBackend(pb.HoldBackendRequest(backend=VSA, parameters=p), timeout=30)):
        error = error_of(lambda: make(struct(parameters)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert field_and_reason(error)[0] == field
    assert not server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases


def test_force_from_the_command_line_carries_parameters(server, pb):
    admin = f"--admin={server.admin}"
    done = ctl("force", VSA, '--parameters={"sparsity": 0.75}', admin)
    assert done.returncode == 0 and '{"sparsity":0.75}' in done.stdout, done.stderr
    assert '{"sparsity":0.75}' in ctl("leases", admin).stdout
    assert parameters_of(self_rows(run(server))[0])["sparsity"] == 0.75
    done = ctl("force", VSA, "--parameters=[1]", admin)
    assert done.returncode == 2 and "--parameters" in done.stderr
    done = ctl("force", VSA, '--parameters={"x": 1}', admin)
    assert done.returncode == 1 and "parameters.x" in done.stderr


def test_dense_steps_and_layers_are_receipted_as_the_kernel_that_ran(server, pb):
    def frames(job):
        return server.fetch(job.id, pb.NPY)

    dense = run(server, formats=[pb.NPY], attention=vsa(pb, dense_first_steps=1000))
    flash = run(server, formats=[pb.NPY], attention=pb.AttentionOptions(backend="FLASH_ATTN"))
    assert frames(dense) == frames(flash)
    row, = self_rows(dense)
    assert (row.asked, row.ran, row.source) == (VSA, "FLASH_ATTN", "request")
    assert not row.HasField("parameters") and VSA in row.reason
    assert dense.receipt.fingerprint == flash.receipt.fingerprint, "the same bits by the same kernel"

    rows = self_rows(run(server, steps=5, attention=vsa(pb, dense_first_steps=2)))
    assert [(r.ran, r.first_step, r.last_step) for r in rows] == [("FLASH_ATTN", 0, 1), (VSA, 2, 4)]
    rows = self_rows(run(server, steps=5, attention=vsa(pb, dense_layers=[0])))
    assert [(r.ran, r.first_step, r.last_step, r.calls) for r in rows] == [("FLASH_ATTN", 0, 4, rows[1].calls),
                                                                         (VSA, 0, 4, rows[0].calls)]


def test_parameters_are_checked_at_submit_even_where_a_force_hides_them(server, pb):
    server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
    error = error_of(lambda: server.submit(attention=vsa(pb, sparse=1)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field_and_reason(error)[0] == "attention.parameters.sparse"


@pytest.mark.parametrize("attention, field", [
    (dict(backend=VSA, parameters=struct({"sparse": 1})), "attention.parameters.sparse"),
    (dict(backend="REFERENCE", parameters=struct({"x": 1})), "attention.parameters.x"),
    (dict(parameters=struct({"x": 1})), "attention.parameters"),
    (dict(backend="FAST"), "attention.backend")])
def test_explain_refuses_what_submit_refuses(server, pb, attention, field):
    options = pb.AttentionOptions(**attention)
    query = pb.ExplainSelectionRequest(attention=options, **SMALL)
    for call in (lambda: server.submit(attention=options),
                 lambda: server.operator.ExplainSelection(query, timeout=30)):
        error = error_of(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert field_and_reason(error)[0] == field


def test_fallbacks_count_what_an_operator_can_act_on(server, pb):
    def fallbacks():
        page = subprocess.run(["curl", "-s", "--noproxy", "*", f"http://{server.http}/metrics"],
                              capture_output=True, text=True, timeout=30).stdout
        return sum(float(line.split()[-1]) for line in page.splitlines()
                   if line.startswith("denoised_attention_fallback_total"))

    before = fallbacks()
    run(server, attention=pb.AttentionOptions(backend=VSA))
    assert fallbacks() == before, "cross-attention, encoder and decoder never list it"
    run(server, attention=pb.AttentionOptions(backend="NO_ATTENTION"))
    assert fallbacks() == before + 1


def test_a_prompt_cut_at_the_token_limit_is_noted(server, pb):
    job = run(server, prompt="a red circle " * 40, max_sequence_length=16)
    note, = [note for note in job.receipt.notes if "cut at" in note]
    assert note.startswith("prompt: cut at 16 of ")
    assert int(note.split(" of ")[1].split()[0]) > 100
    assert not [n for n in run(server, max_sequence_length=64).receipt.notes if "cut at" in n]


def test_sla_without_its_projection_is_a_warning_that_a_person_sees(server, tmp_path):
    done = ctl("generate", "p", "-o", tmp_path / "a.npy", "--height=64", "--width=64", "--frames=5",
               "--steps=1", "--backend=SLA_ATTN", f"--server={server.public}")
    assert done.returncode == 0, done.stderr
    assert "warning: SLA_ATTN: the linear branch was off; the checkpoint has no proj_l" in done.stderr


def test_forces_are_bounded(server, pb):
    for _ in range(1024):
        server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
    error = error_of(lambda: server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert field_and_reason(error)[1] == "TOO_MANY_FORCES"


@pytest.mark.parametrize("value", ["", "  ", "reference", " Reference "])
def test_environment_is_spelt_as_a_request(pb, value):
    with Server(environment={"FASTVIDEO_ATTENTION_BACKEND": value}) as server:
        row, = self_rows(run(server, steps=1))
        blank = not value.strip()
        assert row.source == ("automatic" if blank else "environment")


@pytest.mark.parametrize("program", [["denoised"], ["denoisectl", "run", "p", "-o", "/dev/null.npy"]])
def test_unknown_environment_is_wrong_use_with_all_names(program):
    done = subprocess.run([BIN / program[0], *program[1:]], capture_output=True, text=True, timeout=60,
                          env=clean_environment(FASTVIDEO_ATTENTION_BACKEND="fastest"))
    assert done.returncode == 2, done.stderr
    for word in ("FASTVIDEO_ATTENTION_BACKEND", "fastest", "TORCH_SDPA", "FLASH_ATTN", VSA):
        assert word in done.stderr
