// Values with every field set, for the seeds of fuzz targets.
#ifndef DENOISED_TESTS_FUZZ_FUZZ_SAMPLES_H_
#define DENOISED_TESTS_FUZZ_FUZZ_SAMPLES_H_

#include "runtime/job.h"
#include "runtime/selection_policy.h"

namespace denoised {

inline PlaceScope SamplePlaces() {
  return {AttentionRole::kSelf, Interval{4, 19}, Interval{0, 5}, SigmaRange{0.25, 0.75}};
}

inline Lease SampleLease() {
  Lease lease;
  lease.id = "lease-1";
  lease.backend = AttnBackend::kSageAttn;
  lease.parameters = R"({"density":0.5})";
  lease.scope = {"job", "one", "shapes", 0.2, SamplePlaces()};
  lease.mode = SelectionMode::kStrict;
  lease.budget = Budget{ErrorMetric::kMaxAbs, Statistic::kP50, 0.02, 100};
  lease.reason = "a trial";
  lease.holder = "ipv4:127.0.0.1:1";
  lease.created_at += std::chrono::hours(400'000);
  lease.ends_at = std::chrono::steady_clock::time_point(std::chrono::hours(2));
  lease.sequence = 3;
  return lease;
}

inline Receipt SampleReceipt() {
  ReceiptEntry entry;
  entry.last_step = 11;
  entry.layers = Interval{4, 19};
  entry.asked = AttnBackend::kSageAttn;
  entry.ran = AttnBackend::kTorchSdpa;
  entry.parameters = R"({"density":0.5})";
  entry.selection.granted = {
      SelectionSource::kAutomatic, AttnBackend::kTorchSdpa, "{}", "lease", 2, true};
  entry.selection.granted.measured = "0.1 s";
  entry.selection.refusals = {
      {SelectionSource::kRequest, AttnBackend::kSageAttn, "takes head sizes up to 64"}};
  entry.calls = 24;
  entry.seconds = 0.25;
  Receipt receipt;
  receipt.entries = {entry, entry};
  receipt.entries[1].role = AttentionRole::kCross;
  receipt.weights_digest = receipt.model_digest = receipt.fingerprint = std::string(64, 'f');
  receipt.device = "a CPU";
  receipt.dtype = "float32";
  receipt.version = receipt.torch_version = "1.0";
  receipt.kernels = "avx2";
  receipt.linear = "packed";
  receipt.notes = {"a note"};
  return receipt;
}

inline JobSnapshot SampleJob() {
  using std::chrono::seconds;
  JobSnapshot job;
  job.id = "0123456789abcdef";
  job.sequence = 77;
  job.state = JobState::kFailed;
  job.stage = JobStage::kDenoise;
  job.step = 5;
  job.num_steps = 12;
  job.eta_seconds = 1.5;
  job.attempt = 2;
  job.asked = JobState::kCancelled;
  job.priority = Priority::kUrgent;
  job.tenant = "one";
  job.prompt = "a \"red\" circle \xe2\x80\xa8 \n";
  job.parameters.model = "shapes";
  job.parameters.guidance_scale = 3.5;
  job.created_at = std::chrono::system_clock::time_point(seconds(1700000000));
  job.started_at = job.finished_at = job.created_at + seconds(2);
  job.stage_seconds = {{JobStage::kTextEncode, 0.1}, {JobStage::kDenoise, 2.5}};
  job.receipt = SampleReceipt();
  job.artifacts = {{ArtifactFormat::kNpy, "video.npy", 1234, std::string(64, 'a')}};
  job.error = {StatusCode::kResourceExhausted, "the disk is full", "field", "DISK"};
  return job;
}

inline GenerationRequest SampleRequest() {
  GenerationRequest request;
  request.model = "shapes";
  request.prompt = "a red circle";
  request.negative_prompt = "";
  request.seed = 7;
  request.height = request.width = 64;
  request.num_frames = 5;
  request.fps = 16;
  request.num_inference_steps = 12;
  request.guidance_scale = 3.5;
  request.flow_shift = 3;
  request.max_sequence_length = 512;
  request.attention.backend = AttnBackend::kSageAttn;
  request.attention.mode = SelectionMode::kStrict;
  request.attention.parameters_json = R"({"density":0.5})";
  request.attention.schedule = {
      {SamplePlaces(), AttnBackend::kSageAttn, R"({"density":0.5})", SelectionMode::kStrict}};
  request.numerics.linear = LinearNumerics::kExact;
  request.latents = HostTensor{DType::kFloat32, {1, 1, 1, 2, 1}, std::string(8, 'z')};
  request.formats = {ArtifactFormat::kMp4, ArtifactFormat::kNpy};
  request.deadline = std::chrono::steady_clock::now() + std::chrono::hours(1);
  request.best_effort_deadline = true;
  request.priority = Priority::kBatch;
  request.tenant = "one";
  request.preview = {2, 128};
  request.pin_backends = true;
  request.belongs_to_call = true;
  return request;
}

}  // namespace denoised

#endif  // DENOISED_TESTS_FUZZ_FUZZ_SAMPLES_H_
