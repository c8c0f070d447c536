// One Wan text-to-video job inside WanPipeline.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/models/vae_decoding.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/run_state.h"
#include "runtime/pipelines/wan_pipeline.h"
#include "runtime/pipelines/wan_step.h"

namespace denoised {

// Engine thread. Latents stay float32 between steps whatever the model's dtype is.
class WanRun : public GenerationRun, public WanStepRun {
 public:
  // Throws INVALID_ARGUMENT where RunRequest::saved is not this request's.
  WanRun(const WanPipeline& pipeline, RunRequest request);
  WanRun(const WanRun& other, std::string id, AttentionPlanner* planner);  // as Fork

  Unit Next() const override;
  void Advance() override;
  int64_t steps_done() const override { return step_; }
  HostTensor Latents() const override;
  DecodedVideo TakeVideo() override { return std::move(video_); }
  std::string Save() const override;
  std::vector<double> Sigmas() const override { return scheduler_->sigmas(); }
  void SetGuidance(double scale) override;
  void Write(const SessionWrite& write) override;
  std::unique_ptr<GenerationRun> Fork(std::string id, AttentionPlanner* planner) const override;

  LinearNumerics linear() const override { return request_.parameters.linear; }
  AttentionPlanner* planner() const override { return request_.planner; }
  Observer* observer() const override { return request_.observer; }
  const AttentionPlan& Prepare(std::vector<StepPass>* passes) override;
  void Take(const std::vector<at::Tensor>& predictions, double seconds) override;

 private:
  // Of a step's forward, with guidance two.
  size_t num_passes() const { return PassesOf(request_.parameters.guidance_scale); }
  void TakePrompts();
  at::Tensor InitialLatents() const;
  void Restore(const RunState& state);
  void EncodeNext();
  void EncodeGiven();
  void DecodeChunk();
  void BeginDecode();

  const WanPipeline& pipeline_;
  RunRequest request_;
  std::unique_ptr<Scheduler> scheduler_;
  const bool given_texts_;  // as embeddings
  Unit step_unit_;
  std::vector<WanPipeline::Prompt> prompts_;  // the negative one second, with guidance
  std::vector<TextContext> contexts_;         // of the first so many
  std::string embeddings_;                    // digest over theirs
  std::string saved_embeddings_;              // what it must become; "" = anything
  at::Tensor latents_;                        // [1, C, f, h, w] float32
  int64_t step_ = 0;                          // the next one
  std::unique_ptr<VaeDecoding> decoding_;     // from the first chunk to the last
  bool decoded_ = false;
  DecodedVideo video_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_
