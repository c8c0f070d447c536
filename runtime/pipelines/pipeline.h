// What the engine asks of a model family: Begin -> Step x n -> Finish. Torch-free.
//
// The engine owns the loop and looks at cancels, deadlines and forces between two steps; a pipeline
// owns what a step does. Everything here is called by the engine thread, except where a comment
// says otherwise.
#ifndef DENOISED_RUNTIME_PIPELINES_PIPELINE_H_
#define DENOISED_RUNTIME_PIPELINES_PIPELINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/job.h"
#include "runtime/log.h"
#include "runtime/media/artifacts.h"
#include "runtime/model_info.h"
#include "runtime/pipelines/estimate.h"
#include "runtime/request_check.h"

namespace denoised {

// One job inside a pipeline: its embeddings, latents and solver state. Long work inside has stop
// points (backends/stop_point.h); what they throw leaves latents and solver state as they were.
class GenerationRun {
 public:
  virtual ~GenerationRun() = default;

  // Prompt to embeddings, schedule, noise. Once, first. Throws Error (reason NON_FINITE) where the
  // embeddings are not finite.
  virtual void Begin() = 0;
  // Step i of parameters.num_inference_steps, in order. Throws Error (reason NON_FINITE) where the
  // latents are no longer finite.
  virtual void Step(int64_t i) = 0;
  // Latents to frames. `keep_float` keeps the unrounded values too, for .npy. Throws Error (reason
  // NON_FINITE) naming the frames where the decoder gives none.
  virtual DecodedVideo Finish(bool keep_float) = 0;
  // The latents as they are now, [1, C, f, h, w] float32.
  virtual HostTensor Latents() const = 0;
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

  // What a checked request will take, `cost` of each of its attentions asked for, with the fewest
  // decode_bands that `available` bytes hold; any thread.
  virtual WorkEstimate EstimateRun(const GenerationRequest& request,
                                   const ResolvedParameters& parameters, int64_t available,
                                   const CostOfAttention& cost) const = 0;
  virtual WorkEstimate EstimateDenoise(const DenoiseRequest& request,
                                       const CostOfAttention& cost) const = 0;

  // What calls have made since loading that stays, such as a second form of the weights; any
  // thread.
  virtual int64_t MadeBytes() const = 0;

  virtual std::unique_ptr<GenerationRun> NewRun(RunRequest request) = 0;
  virtual DenoiseResult Denoise(const DenoiseRequest& request, AttentionPlanner* planner,
                                Observer* observer) = 0;
};

// What a request's layers compute.
inline LinearNumerics LinearOf(const DenoiseRequest& request, const Pipeline& pipeline) {
  return request.numerics.linear.value_or(pipeline.info().defaults.linear);
}

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
};

// By name. Exactly one pipeline is the default.
struct LoadedRepository {
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  std::vector<FailedModel> failed;
};

// Loads every model folder that model_folders.h finds. Throws Error naming the folder or file where
// none can be loaded, or with `strict` at the first that cannot.
LoadedRepository LoadPipelines(const RepositoryOptions& options, const SelectionPolicy* policy,
                               Observer* observer, Logger* logger);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_PIPELINE_H_
