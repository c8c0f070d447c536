"""The metrics page as Prometheus sees it."""

import json
import re
import shutil
import subprocess
import tempfile
import time

import pytest
import requests

from harness import eventually, free_port

NEEDS_PROMETHEUS = pytest.mark.skipif(shutil.which("prometheus") is None or shutil.which("promtool") is None,
                                      reason="Debian's package prometheus is not installed")


def get(url, **parameters):
    session = requests.Session()
    session.trust_env = False
    return session.get(url, params=parameters, timeout=30)


@pytest.fixture(scope="module")
def busy(server, pb):
    """The server after some work of each kind."""
    for steps in (2, 3):
        server.wait_for_end(server.submit(num_inference_steps=steps).id)
    server.operator.ForceBackend(pb.ForceBackendRequest(backend="REFERENCE"), timeout=30)
    server.wait_for_end(server.submit(num_inference_steps=2).id)
    server.operator.ReleaseForce(pb.ReleaseForceRequest(all=True), timeout=30)
    options = pb.AttentionOptions(backend="NO_ATTENTION")
    server.wait_for_end(server.submit(num_inference_steps=1, attention=options).id)
    return server


def test_every_family_of_the_contract_is_there(busy):
    # A job is counted a moment after its last state is seen.
    eventually(lambda: re.search(r'denoised_jobs_total\{model="tiny",outcome="SUCCEEDED"\} 4\n',
                                 get(f"http://{busy.http}/metrics").text), what="four counted jobs")
    page = get(f"http://{busy.http}/metrics").text
    for name in ("forward_seconds", "forward_batch_size", "forward_batch_tokens", "step_seconds",
                 "stage_seconds", "attention_seconds", "attention_calls_total", "attention_fallback_total",
                 "backend_switch_total", "lease_active", "queue_depth", "queue_wait_seconds", "jobs_total",
                 "jobs_running", "rpc_seconds", "model_load_seconds", "build_info"):
        # What never happened yet has no series: nothing was switched here in the middle of a job.
        assert f"# HELP denoised_{name} " in page or name == "backend_switch_total", name
    assert re.search(r'denoised_step_seconds_count\{model="tiny"\} 8\n', page)
    assert 'denoised_attention_fallback_total{from="NO_ATTENTION",reason="request"' in page
    for stage in ("text_encode", "denoise", "decode", "encode"):
        assert f'denoised_stage_seconds_count{{model="tiny",stage="{stage}"}} 4' in page


def test_no_series_twice_and_few_of_them(busy):
    lines = [line.rsplit(" ", 1)[0] for line in get(f"http://{busy.http}/metrics").text.splitlines()
             if line and not line.startswith("#")]
    assert len(lines) == len(set(lines)) < 2000


@NEEDS_PROMETHEUS
def test_promtool_has_nothing_to_say(busy):
    done = subprocess.run(["promtool", "check", "metrics"], input=get(f"http://{busy.http}/metrics").text,
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@NEEDS_PROMETHEUS
def test_prometheus_scrapes_it_and_answers_histogram_queries(busy, pb):
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/prometheus.yml", "w", encoding="utf8") as file:
            json.dump({"global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"},
                       "scrape_configs": [{"job_name": "denoised",
                                           "static_configs": [{"targets": [busy.http]}]}]}, file)
        address = f"127.0.0.1:{free_port()}"
        log = open(f"{folder}/log", "w+", encoding="utf8")
        prometheus = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={address}"], stdout=log, stderr=log)

        def query(text):
            try:
                response = get(f"http://{address}/api/v1/query", query=text)
            except requests.ConnectionError:
                return []
            if response.status_code == 503:  # still replaying its own (empty) log
                return []
            reply = response.json()
            assert reply["status"] == "success", reply
            return [float(row["value"][1]) for row in reply["data"]["result"]]

        def there(text):
            """Its number; there is none while a scrape is late."""
            return eventually(lambda: query(text), what=text)[0]

        try:
            eventually(lambda: query("up") == [1.0], timeout=30, what="the first scrape")
            before = there("denoised_step_seconds_count")
            for _ in range(3):
                busy.wait_for_end(busy.submit(num_inference_steps=2).id)
            eventually(lambda: query("denoised_step_seconds_count") == [before + 6.0],
                       what="the steps in Prometheus")
            time.sleep(1)
            quantile = "histogram_quantile(0.5, sum by (le) (denoised_forward_seconds_bucket))"
            assert 0 < there(quantile) < 60
            assert there("sum(denoised_forward_batch_size_sum) / sum(denoised_forward_batch_size_count)") >= 1
            assert there("histogram_quantile(0.9, sum by (le) (rate(denoised_step_seconds_bucket[10s])))") > 0
            assert there("scrape_samples_scraped") > 100
            log.seek(0)
            assert "uplicate" not in log.read()
        finally:
            prometheus.terminate()
            prometheus.wait(timeout=20)
            log.close()
