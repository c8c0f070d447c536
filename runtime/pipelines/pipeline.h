// What the engine asks of a model family: units of work, and steps that many runs share.
// Torch-free.
//
// The engine owns the loop and looks at arrivals, cancels, deadlines and forces between two units;
// a pipeline owns what a unit does. Everything here is called by the engine thread, except where a
// comment says otherwise.
#ifndef DENOISED_RUNTIME_PIPELINES_PIPELINE_H_
#define DENOISED_RUNTIME_PIPELINES_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/job.h"
#include "runtime/log.h"
#include "runtime/media/artifacts.h"
#include "runtime/media/preview.h"
#include "runtime/model_info.h"
#include "runtime/pipelines/estimate.h"
#include "runtime/pipelines/unit.h"
#include "runtime/request_check.h"
#include "runtime/session.h"

namespace denoised {

// A piece of work inside a pipeline: a job or a Denoise call, that goes from unit to unit. What a
// unit throws leaves the run as it was before the unit.
class Run {
 public:
  virtual ~Run() = default;
  virtual Unit Next() const = 0;
  // Does the next unit where it is kEncodePrompt (one prompt) or kDecode (one chunk of frames).
  // Steps are Pipeline::Step's. Throws Error (reason NON_FINITE) where a model gives numbers that
  // are not finite, FAILED_PRECONDITION where the next unit is another.
  virtual void Advance() = 0;
};

// A job: prompts, steps, frames.
class GenerationRun : public Run {
 public:
  virtual int64_t steps_done() const = 0;
  // The latents as they are now, [1, C, f, h, w] float32.
  virtual HostTensor Latents() const = 0;
  // Once, at kDone. Empty where RunRequest::decode is kNothing.
  virtual DecodedVideo TakeVideo() = 0;
  // All that a new run of the same RunRequest needs to go on from here with the same bits: step,
  // latents, the solver's history, a digest of the embeddings (they are encoded again, and must be
  // the same). The bytes of a safetensors file. A decode that has begun begins anew.
  virtual std::string Save() const = 0;

  // For sessions, between two units.

  // Noise levels of the steps, and after the last one.
  virtual std::vector<double> Sigmas() const = 0;
  // From the next step on. Above 1 it wants what leads away from: the negative prompt is encoded
  // first, a unit of its own.
  virtual void SetGuidance(double scale) = 0;
  // Other latents (checked), or the same, before step `step` or the next one. What the solver
  // remembers of earlier steps is forgotten, as at a trajectory's beginning, or, of the next step
  // only, kept.
  virtual void Write(const SessionWrite& write) = 0;
  // A second run from here under another id, with the same bits to come. `planner` outlives it.
  virtual std::unique_ptr<GenerationRun> Fork(std::string id, AttentionPlanner* planner) const = 0;
};

// One step for latents of the client's.
class DenoiseRun : public Run {
 public:
  virtual DenoiseResult TakeResult() = 0;  // once, at kDone; without receipt and queue_seconds
};

// What a run is made from. `planner` and `observer` outlive it.
struct RunRequest {
  std::string prompt;
  std::string job_id;
  ResolvedParameters parameters;
  std::optional<HostTensor> latents;
  AttentionPlanner* planner = nullptr;
  Observer* observer = nullptr;
  int64_t decode_bands = 1;  // as the estimate says
  // What is wanted beside the latents; the unrounded values are for .npy.
  enum class Decode : uint8_t { kNothing, kFrames, kFramesAndValues };
  Decode decode = Decode::kFrames;
  std::string saved;                  // GenerationRun::Save's; "" = from the start
  bool release_text_encoder = false;  // after the prompts; as the estimate says
  SessionGiven given = {};
};

// A loaded model.
class Pipeline {
 public:
  virtual ~Pipeline() = default;

  // Constant after loading; any thread.
  virtual const ModelInfo& info() const = 0;
  virtual const GeometryRules& rules() const = 0;
  virtual const PlannerSetting& planner_setting() const = 0;
  // The specs of self- and cross-attention for a job of this size; any thread.
  virtual std::vector<AttentionSpec> DenoiseSpecs(const ResolvedParameters& parameters) const = 0;
  // Throws InvalidField where given latents, embeddings or timesteps do not fit the model; any
  // thread.
  virtual void CheckRun(const GenerationRequest& request,
                        const ResolvedParameters& parameters) const = 0;
  virtual void CheckDenoise(const DenoiseRequest& request) const = 0;
  virtual void CheckSession(const SessionRequest& request,
                            const ResolvedParameters& parameters) const = 0;
  // Of latents that are to be written into a run of these parameters.
  virtual void CheckLatents(const HostTensor& latents,
                            const ResolvedParameters& parameters) const = 0;
  virtual std::vector<int64_t> LatentShape(const ResolvedParameters& parameters) const = 0;

  // What a checked request will take, `cost` of each of its attentions asked for, with the fewest
  // decode_bands that `available` bytes hold, and with the text encoder kept if they do; any
  // thread.
  virtual WorkEstimate EstimateRun(const GenerationRequest& request,
                                   const ResolvedParameters& parameters, int64_t available,
                                   const CostOfAttention& cost) const = 0;
  virtual WorkEstimate EstimateDenoise(const DenoiseRequest& request,
                                       const CostOfAttention& cost) const = 0;

  // What calls have made since loading that stays, such as a second form of the weights, less what
  // was released since; any thread.
  virtual int64_t MadeBytes() const = 0;
  // For previews of latents; made at the first call, a unit of work by itself: engine thread. What
  // it gives stays where it is and serves any thread. Without colours: a family without previews.
  virtual const LatentColours& Colours() {
    static const LatentColours kNone;
    return kNone;
  }

  // Of checked requests. Throws INVALID_ARGUMENT where RunRequest::saved is damaged or another
  // request's.
  virtual std::unique_ptr<GenerationRun> NewRun(RunRequest request) = 0;
  // `step` is the unit of EstimateDenoise. `request`, `planner` and `observer` outlive it.
  virtual std::unique_ptr<DenoiseRun> NewDenoiseRun(const DenoiseRequest& request, const Unit& step,
                                                    AttentionPlanner* planner,
                                                    Observer* observer) = 0;
  // One step of each run, all of them at kStep and of one group, in one forward; where its memory
  // does not suffice, in two of half the passes, and so on.
  // The i-th value says why the i-th run did not advance (NON_FINITE, a selection refused): the
  // others did. Throws where nobody advanced: a stop point's Error, or what failed inside a shared
  // forward. Books each run's attention on its own planner, seconds shared by rows, and completes
  // its step there.
  virtual std::vector<std::optional<Error>> Step(const std::vector<Run*>& runs) = 0;
};

using PipelinePtr = std::shared_ptr<Pipeline>;

// What a request's layers compute.
inline LinearNumerics LinearOf(const DenoiseRequest& request, const Pipeline& pipeline) {
  return request.numerics.linear.value_or(pipeline.info().defaults.linear);
}

// Passes of a step that are rows of one call of attention: on a GPU each has a call of its own.
inline int64_t PassesInACall(double guidance_scale, const Pipeline& pipeline) {
  const bool together = pipeline.planner_setting().device.type == DeviceInfo::Type::kCpu;
  return together ? PassesOf(guidance_scale) : 1;
}

// Told before weights are read how many bytes of the host's memory they will take at most. What it
// throws ends the load.
using AdmitWeights = std::function<void(int64_t bytes)>;

struct RepositoryOptions {
  std::string repository;
  std::string device = "auto";
  std::string dtype = "auto";
  bool admit_unmeasured = false;  // backends/admission.h
  std::string variant;            // as EngineOptions has them
  bool strict = false;
  std::string state_dir;
  std::optional<LinearNumerics> linear;
  std::string vae_dtype = "auto";
  std::string keep_text_encoder = "auto";
  std::shared_ptr<Measurements> measurements = std::make_shared<Measurements>();  // of all models
};

// Where models come from again while others serve. One thread at a time.
class ModelSource {
 public:
  virtual ~ModelSource() = default;
  // Reads and checks the folder of that name as it is now; has stop points. Throws NOT_FOUND (field
  // "name", reason MODEL_NOT_FOUND) where the repository has none, else Error naming the file and
  // what is wrong with it.
  virtual std::unique_ptr<Pipeline> Load(const std::string& name, const AdmitWeights& admit) = 0;
};

// What became of a folder, of the Error that its loading ended with.
FailedModel FailureOf(const std::string& name, const Error& error);

// By name.
struct LoadedRepository {
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  std::string default_model;  // one of them
  std::vector<FailedModel> failed;
  std::unique_ptr<ModelSource> source;  // null: nothing is loaded later
};

// Loads every model folder that model_folders.h finds. Throws Error naming the folder or file where
// none can be loaded, or with `strict` at the first that cannot.
// `policy`, `observer` and `logger` outlive what it gives.
LoadedRepository LoadPipelines(const RepositoryOptions& options, const SelectionPolicy* policy,
                               Observer* observer, Logger* logger);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_PIPELINE_H_
