// One Wan text-to-video job inside WanPipeline.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_

#include <ATen/ATen.h>

#include <memory>
#include <optional>

#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/wan_pipeline.h"

namespace denoised {

// Engine thread. Latents stay float32 between steps whatever the model's dtype is.
class WanRun : public GenerationRun {
 public:
  WanRun(const WanPipeline& pipeline, RunRequest request);

  void Begin() override;
  void Step(int64_t i) override;
  DecodedVideo Finish(bool keep_float) override;
  HostTensor Latents() const override;

 private:
  at::Tensor InitialLatents() const;
  at::Tensor Predict(int64_t i);

  const WanPipeline& pipeline_;
  const RunRequest request_;
  std::unique_ptr<Scheduler> scheduler_;
  TextContext conditional_;
  std::optional<TextContext> unconditional_;  // with guidance
  at::Tensor latents_;                        // [1, C, f, h, w] float32
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_RUN_H_
