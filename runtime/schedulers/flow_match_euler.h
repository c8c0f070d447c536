// Euler steps along the flow (diffusers' FlowMatchEulerDiscreteScheduler). Paper: Esser et al.,
// arXiv:2403.03206.
#ifndef DENOISED_RUNTIME_SCHEDULERS_FLOW_MATCH_EULER_H_
#define DENOISED_RUNTIME_SCHEDULERS_FLOW_MATCH_EULER_H_

#include <string>
#include <vector>

#include "runtime/schedulers/scheduler.h"

namespace denoised {

// Static shift only. The reference shifts twice: the table that gives the end points is shifted,
// and so is the line between them. Kept, since checkpoints are used with it.
class FlowMatchEulerScheduler : public Scheduler {
 public:
  struct Config {
    int64_t num_train_timesteps = 1000;
    double shift = 1.0;
  };

  explicit FlowMatchEulerScheduler(const ConfigReader& reader);
  explicit FlowMatchEulerScheduler(Config config) : config_(config) {}

  std::unique_ptr<Scheduler> Clone() const override;
  std::unique_ptr<Scheduler> Copy() const override;
  double shift() const override { return config_.shift; }
  at::Tensor TimestepTensor(int64_t i, int64_t batch, at::Device device) const override;

 protected:
  std::vector<double> MakeSigmas(int64_t steps, std::optional<double> shift) const override;
  void LayOut(std::vector<double> sigmas) override;
  at::Tensor Advance(const at::Tensor& model_output, int64_t i, const at::Tensor& sample) override;
  std::string Solver() const override;
  // A step sees nothing of those before it.
  std::vector<std::string> HistoryNames(int64_t) const override { return {}; }
  History GetHistory() const override { return {}; }
  void SetHistory(int64_t, const History&) override {}

 private:
  const Config config_;
  at::Tensor timestep_tensor_;  // [steps] float32
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SCHEDULERS_FLOW_MATCH_EULER_H_
