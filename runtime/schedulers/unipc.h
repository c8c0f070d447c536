// UniPC, the multistep predictor-corrector of Wan pipelines (diffusers' UniPCMultistepScheduler
// with flow prediction and flow sigmas). Paper: Zhao et al., arXiv:2302.04867.
#ifndef DENOISED_RUNTIME_SCHEDULERS_UNIPC_H_
#define DENOISED_RUNTIME_SCHEDULERS_UNIPC_H_

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "runtime/schedulers/scheduler.h"
#include "runtime/schedulers/unipc_table.h"

namespace denoised {

// Predictor and corrector of orders 1 to 3, B(h) of both kinds.
class UniPcScheduler : public Scheduler {
 public:
  struct Config {
    int64_t num_train_timesteps = 1000;
    int64_t solver_order = 2;
    bool bh1 = false;  // B(h) = h; else expm1(h)
    bool lower_order_final = true;
    std::vector<int64_t> disable_corrector;  // after these steps
    double flow_shift = 1.0;
  };

  explicit UniPcScheduler(const ConfigReader& reader);
  explicit UniPcScheduler(Config config) : config_(std::move(config)) {}

  std::unique_ptr<Scheduler> Clone() const override;
  std::unique_ptr<Scheduler> Copy() const override;
  double shift() const override { return config_.flow_shift; }
  at::Tensor TimestepTensor(int64_t i, int64_t batch, at::Device device) const override;

 protected:
  std::vector<double> MakeSigmas(int64_t steps, std::optional<double> shift) const override;
  void LayOut(std::vector<double> sigmas) override;
  at::Tensor Advance(const at::Tensor& model_output, int64_t i, const at::Tensor& sample) override;
  std::string Solver() const override;
  std::vector<std::string> HistoryNames(int64_t next_step) const override;
  History GetHistory() const override;
  void SetHistory(int64_t next_step, const History& history) override;

 private:
  at::Tensor Predict(int64_t i, const at::Tensor& sample) const;
  at::Tensor Correct(int64_t i, const at::Tensor& clean) const;
  at::Tensor Base(const UniPcWay& way, const at::Tensor& sample) const;
  at::Tensor Older(const UniPcWay& way) const;
  bool Corrects(int64_t i) const;
  // Of the predictor of step i, and clean predictions that are known after it.
  int64_t OrderAt(int64_t i) const;
  int64_t CleanAfter(int64_t i) const;

  const Config config_;
  // Its clones' too.
  std::shared_ptr<UniPcTables> tables_ = std::make_shared<UniPcTables>(config_.bh1);
  std::shared_ptr<UniPcTable> table_;  // of the schedule, once a step was made
  std::deque<at::Tensor> clean_;       // predictions of the clean latents, newest first
  at::Tensor last_sample_;             // the corrected latents of the step before
  int64_t order_ = 1;                  // of the last predictor
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SCHEDULERS_UNIPC_H_
