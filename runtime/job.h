// Requests, jobs, receipts: the plain values that cross between server/ and the engine. Torch-free.
// An unset optional is "not given": the engine takes the model's default and the job says which.
#ifndef DENOISED_RUNTIME_JOB_H_
#define DENOISED_RUNTIME_JOB_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/error.h"
#include "backends/selector.h"
#include "runtime/numerics.h"
#include "runtime/scope.h"

namespace denoised {

// A dense tensor as bytes: row-major, little-endian.
struct HostTensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::string data;
};
// Throws InvalidField(field, ...) where a dimension is negative, the product overflows or the byte
// count is not what dtype and shape say.
void CheckHostTensor(const HostTensor& tensor, const std::string& field);

struct AttentionOptions {
  std::optional<AttnBackend> backend;
  SelectionMode mode = SelectionMode::kPrefer;
  // The backend's own parameters, a JSON object. "" = none are given, which leaves what is set for
  // the backend elsewhere; "{}" = its own defaults.
  std::string parameters_json;
  // By place; goes before `backend`. The first rule that holds counts. At most kMaxRules.
  std::vector<AttentionRule> schedule;
  static constexpr size_t kMaxRules = 64;
};

enum class ArtifactFormat : uint8_t { kMp4, kGif, kPng, kNpy, kSafetensors };
std::string_view ArtifactFormatName(ArtifactFormat format);  // "mp4", ... also the file ending
std::optional<ArtifactFormat> ArtifactFormatFromName(std::string_view name);
std::string_view ArtifactMediaType(ArtifactFormat format);  // "video/mp4", ...
bool Wants(const std::vector<ArtifactFormat>& formats, ArtifactFormat format);
// Whether any of them is made of frames.
bool WantsFrames(const std::vector<ArtifactFormat>& formats);

// Classes of work. What is more urgent comes first for longer; nothing waits for ever (engine/).
enum class Priority : uint8_t { kBatch, kNormal, kUrgent };
std::string_view PriorityName(Priority priority);  // "BATCH", "NORMAL", "URGENT"
std::optional<Priority> PriorityFromName(std::string_view name);

// Small pictures of a job on its way.
struct PreviewOptions {
  int64_t every_steps = 1;
  int64_t max_side = 256;  // pixels
};

// One of them, as a PNG of the latents' frames (media/preview.h).
struct JobPreview {
  int64_t step = 0;  // steps done
  std::string png;
};

// A text-to-video job. Sizes in pixels and frames; names follow diffusers' WanPipeline.__call__.
struct GenerationRequest {
  std::string model;  // "" = the default model
  std::string prompt;
  std::optional<std::string> negative_prompt;
  std::optional<int64_t> seed;  // unset: drawn, and reported
  std::optional<int64_t> height, width, num_frames, fps;
  std::optional<int64_t> num_inference_steps;
  std::optional<double> guidance_scale;
  std::optional<double> flow_shift;
  std::optional<int64_t> max_sequence_length;
  AttentionOptions attention;
  NumericsOptions numerics;
  std::optional<HostTensor> latents;    // initial noise [1, C, f, h, w]; unset: from the seed
  std::vector<ArtifactFormat> formats;  // empty = {mp4}
  std::optional<std::chrono::steady_clock::time_point> deadline;
  // Accepts a deadline that by prediction cannot be met.
  bool best_effort_deadline = false;
  Priority priority = Priority::kNormal;
  std::string
      tenant;  // who shares the device with others; "" = a tenant of its own, like any other
  // Not "": a request with a key that was used is the job that it made then.
  std::string idempotency_key;
  // Unset: none. A result is the same with and without.
  std::optional<PreviewOptions> preview;
  // The leases that hold when it begins hold to its end; later ones are not for it.
  bool pin_backends = false;
  // The job ends with the call that made it, so no later server takes it up.
  bool belongs_to_call = false;
};

// What the request became once every default was filled in.
struct ResolvedParameters {
  std::string model;
  int64_t seed = 0;
  int64_t height = 0, width = 0, num_frames = 0, fps = 0;
  int64_t num_inference_steps = 0;
  double guidance_scale = 0, flow_shift = 0;
  int64_t max_sequence_length = 0;
  std::string negative_prompt;
  std::string scheduler;
  LinearNumerics linear = LinearNumerics::kExact;
};

enum class JobState : uint8_t { kQueued, kRunning, kSuspended, kSucceeded, kFailed, kCancelled };
std::string_view JobStateName(JobState state);  // "QUEUED", ...
inline bool IsTerminal(JobState state) { return state >= JobState::kSucceeded; }

enum class JobStage : uint8_t { kNone, kTextEncode, kDenoise, kDecode, kEncode };
std::string_view JobStageName(JobStage stage);  // "text_encode", "denoise", "decode", "encode"

// One row of the receipt: what ran for a role over a range of steps, and the wish that made it run.
// Two rows of a role share steps where some layers ran another kernel than the rest.
struct ReceiptEntry {
  AttentionRole role = AttentionRole::kSelf;
  int64_t first_step = 0, last_step = 0;      // inclusive; 0..0 for roles outside the loop
  std::optional<Interval> layers;             // unset: all of the role
  std::optional<AttnBackend> asked;           // by the request, there
  AttnBackend ran = AttnBackend::kReference;  // whose kernel it was: the granted wish's, or the one
                                              // that this hands some steps or layers over to
  std::string parameters;                     // canonical ones of `ran`; "" where it takes none
  Selection selection;                        // the granted wish, and the refusals of these steps
  uint64_t calls = 0;
  std::optional<double> seconds;  // empty where they are not known: on CUDA
};
std::string Reason(const ReceiptEntry& entry);  // one sentence for people

struct Receipt {
  std::vector<ReceiptEntry> entries;
  // What makes the result reproducible.
  std::string weights_digest, model_digest, device, dtype, version, torch_version;
  std::string kernels;             // which code computed: instruction sets, libraries
  std::string linear;              // the job's numerics: LinearNumericsName
  std::string fingerprint;         // SHA-256 over all that changes the pixels, hex; see receipt.h
  std::vector<std::string> notes;  // e.g. "gate branch off: the checkpoint has no to_gate_compress"
};

struct ArtifactInfo {
  ArtifactFormat format = ArtifactFormat::kMp4;
  std::string name;  // "video.mp4"
  uint64_t size_bytes = 0;
  std::string sha256;
};

struct JobError {
  StatusCode code = StatusCode::kUnknown;
  std::string message, field, reason;
  std::optional<std::chrono::milliseconds> retry_after = std::nullopt;  // as Error has it
  std::string details = {};                                             // as Error has them
};
JobError ToJobError(const Error& error);

// A job at one moment. Cheap to copy except for the receipt (kilobytes).
struct JobSnapshot {
  std::string id;
  uint64_t sequence = 0;  // of the last event; grows with each change
  JobState state = JobState::kQueued;
  JobStage stage = JobStage::kNone;
  int64_t step = 0, num_steps = 0;  // steps done, steps in all
  std::optional<double> eta_seconds;
  // Of a job that waits, as the order is when it is asked for: said by Engine::AddPlace, and in no
  // store. So is its `eta_seconds`.
  int64_t queue_position = 0;               // works that come before it; 0 = next
  std::optional<double> starts_in_seconds;  // predicted
  // Starts of its run: 1, and one more for each server that ended on the way.
  int64_t attempt = 0;
  // What it is to become by a wish that was accepted, and is not yet: SUSPENDED or CANCELLED. Kept
  // like a state, so that the next server knows of it.
  std::optional<JobState> asked;
  Priority priority = Priority::kNormal;
  std::string tenant;
  std::string prompt;
  ResolvedParameters parameters;
  std::chrono::system_clock::time_point created_at;
  std::optional<std::chrono::system_clock::time_point> started_at, finished_at;
  std::vector<std::pair<JobStage, double>> stage_seconds;
  Receipt receipt;
  std::vector<ArtifactInfo> artifacts;
  std::optional<JobError> error;
  std::shared_ptr<const JobPreview> preview;  // the newest one; null where there is none
};

// Passes of classifier-free guidance that a step takes; all of them are rows of its forward.
inline int64_t PassesOf(double guidance_scale) { return guidance_scale > 1 ? 2 : 1; }

// Passes of classifier-free guidance that the rows of a forward belong to.
enum class Branch : uint8_t { kNone, kConditional, kUnconditional, kMixed };
std::string_view BranchName(Branch branch);  // "none", "cond", "uncond", "mixed"

// One denoising step for latents that the client holds.
struct DenoiseRequest {
  enum class Output : uint8_t { kPrediction, kNextLatents };
  std::string model;
  HostTensor latents;                                        // [B, C, f, h, w] float32 or bfloat16
  HostTensor timestep;                                       // [B] float32 or int64, 0..1000
  HostTensor encoder_hidden_states;                          // [B, L, text_dim]
  std::optional<HostTensor> negative_encoder_hidden_states;  // needed when guidance_scale > 1
  double guidance_scale = 1;
  Output output = Output::kPrediction;
  double sigma = 0, sigma_next = 0;  // kNextLatents: x + (sigma_next - sigma) * v, in float32
  AttentionOptions attention;
  NumericsOptions numerics;
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

struct DenoiseResult {
  HostTensor tensor;  // prediction in the model's dtype, or next latents in float32
  Receipt receipt;
  double queue_seconds = 0;
  double forward_seconds = 0;  // of a forward that others shared, its part by rows
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_JOB_H_
