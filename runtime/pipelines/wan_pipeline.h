// Wan text-to-video: one model folder in HF-diffusers layout, and its denoising steps.
//
// Follows diffusers' WanPipeline.__call__ (pipelines/wan/pipeline_wan.py, 0.42.1) in the order of
// operations and in dtypes, so that the same seed gives the same video.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_PIPELINE_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_PIPELINE_H_

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/loaders/config.h"
#include "runtime/loaders/model_folder.h"
#include "runtime/loaders/model_index.h"
#include "runtime/models/umt5.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/models/wan_vae.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/prompt_cache.h"
#include "runtime/pipelines/text_encoder_source.h"
#include "runtime/pipelines/wan_estimate.h"
#include "runtime/schedulers/scheduler.h"
#include "runtime/tokenizer/tokenizer.h"

namespace denoised {

class WanPipeline : public Pipeline {
 public:
  // Throws Error naming the file, key or tensor that does not fit. `name` is what requests say.
  static std::unique_ptr<WanPipeline> Load(const ModelFolder& folder, const std::string& name,
                                           const RepositoryOptions& options,
                                           const SelectionPolicy* policy, Logger* logger,
                                           const AdmitWeights& admit = {});

  const ModelInfo& info() const override { return info_; }
  const GeometryRules& rules() const override { return rules_; }
  const PlannerSetting& planner_setting() const override { return setting_; }
  std::vector<AttentionSpec> DenoiseSpecs(const ResolvedParameters& parameters) const override;
  void CheckRun(const GenerationRequest& request,
                const ResolvedParameters& parameters) const override;
  void CheckDenoise(const DenoiseRequest& request) const override;
  void CheckSession(const SessionRequest& request,
                    const ResolvedParameters& parameters) const override;
  void CheckLatents(const HostTensor& latents, const ResolvedParameters& parameters) const override;
  std::vector<int64_t> LatentShape(const ResolvedParameters& parameters) const override;
  WorkEstimate EstimateRun(const GenerationRequest& request, const ResolvedParameters& parameters,
                           int64_t available, const CostOfAttention& cost) const override;
  WorkEstimate EstimateDenoise(const DenoiseRequest& request,
                               const CostOfAttention& cost) const override;
  int64_t MadeBytes() const override;
  const LatentColours& Colours() override;
  std::unique_ptr<GenerationRun> NewRun(RunRequest request) override;
  std::unique_ptr<DenoiseRun> NewDenoiseRun(const DenoiseRequest& request, const Unit& step,
                                            AttentionPlanner* planner, Observer* observer) override;
  std::vector<std::optional<Error>> Step(const std::vector<Run*>& runs) override;

  // For runs; engine thread.

  // A prompt in tokens; `field` names it in errors, and in the note where it was cut.
  struct Prompt {
    std::string field;
    Tokenizer::Encoding tokens;  // max_sequence_length of them, with padding
  };
  Prompt Tokenize(const std::string& field, const std::string& prompt, int64_t max_length) const;
  // The embeddings of its real tokens [1, length, d], on the CPU. NON_FINITE where the encoder
  // gives NaN or infinity. The encoder runs once for a prompt that prompts_ still knows.
  at::Tensor EncodePrompt(const Prompt& prompt, AttentionPlanner* planner,
                          Observer* observer) const;
  // Frees the text encoder's weights until the next prompt that the cache does not know.
  void ReleaseTextEncoder() const;
  // What they are to the transformer.
  TextContext ContextOf(const at::Tensor& embeds, const Prompt& prompt) const;
  std::vector<AttentionSpec> SpecsFor(at::IntArrayRef latent_shape, int64_t text_length) const;

  WanParts parts() const {
    return {*text_encoder_, *transformer_, *vae_, device_.is_cpu(), keep_text_encoder_};
  }
  const WanTransformer& transformer() const { return *transformer_; }
  const WanVaeDecoder& vae() const { return *vae_; }
  const Scheduler& scheduler() const { return *scheduler_; }  // runs take clones
  at::Device device() const { return device_; }

 private:
  explicit WanPipeline(at::Device device) : device_(device) {}
  at::Tensor RunTextEncoder(const std::vector<int64_t>& padded_ids, int64_t length,
                            const AttentionPlan& plan) const;
  int64_t TextEncoderBytes() const;
  void LoadScheduler(const ModelFolder& folder, const ModelIndex& index);
  void LoadComponents(const ModelFolder& folder, const ModelIndex& index,
                      const RepositoryOptions& options, LinearNumerics linear,
                      const AdmitWeights& admit);
  void CheckComponents(const ModelFolder& folder) const;
  void SetNumerics(LinearNumerics linear);
  void CheckNumerics(const NumericsOptions& numerics) const;
  void SetDefaults();
  void ReadDefaults(const ConfigReader& own);
  void ReadRequestDefaults(const ConfigReader& given);
  void Describe(const Manifest& manifest);
  void CheckDefaultAttention(const std::string& own_file) const;
  void CheckDefaultSchedule(const std::string& own_file) const;
  void WarnOtherNumerics(LinearNumerics wanted, Logger* logger) const;
  void WarnUnused(Logger* logger) const;

  const at::Device device_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Tokenizer> tokenizer_;
  KeepTextEncoder keep_text_encoder_ = KeepTextEncoder::kAuto;
  std::unique_ptr<Umt5Encoder> text_encoder_;
  std::optional<TextEncoderSource> text_encoder_source_;
  int64_t text_encoder_bytes_at_load_ = 0;  // when loading was done
  std::unique_ptr<WanTransformer> transformer_;
  std::unique_ptr<WanVaeDecoder> vae_;
  // Of some hundred prompts; a part of every estimate.
  mutable PromptCache prompts_{int64_t{64} << 20};
  std::optional<LatentColours> colours_;
  ModelInfo info_;
  GeometryRules rules_;
  PlannerSetting setting_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_PIPELINE_H_
