// What the steps of UniPC take from the schedule alone. A step needs some sixty operations on
// single numbers for it, which at small latents are most of the step: they are done once a schedule
// and not once a step of each job.
#ifndef DENOISED_RUNTIME_SCHEDULERS_UNIPC_TABLE_H_
#define DENOISED_RUNTIME_SCHEDULERS_UNIPC_TABLE_H_

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace denoised {

// The way from one noise level to the next, as predictor and corrector go it: numbers of the
// reference's float32 arithmetic, of operations on 0-dim tensors in its order.
struct UniPcWay {
  float ratio = 0;   // sigma_to / sigma_from
  float growth = 0;  // alpha_to * expm1(-h)
  float spread = 0;  // alpha_to * B(h)
  // Of the older clean predictions, in steps of h: the k-th is divided by steps[k - 1].
  std::array<float, 2> steps{};
  std::array<float, 3> weights{};  // rho: of the differences, and the corrector's of its own
};

// Of one schedule. Any thread.
class UniPcTable {
 public:
  // `sigmas` float32 [steps + 1] on the CPU; B(h) is h, or else expm1(h).
  UniPcTable(at::Tensor sigmas, bool bh1) : sigmas_(std::move(sigmas)), bh1_(bh1) {}

  const at::Tensor& sigmas() const { return sigmas_; }
  // From step i to the next; from the step before i to i. 1 <= order <= 3.
  UniPcWay Predictor(int64_t i, int64_t order);
  UniPcWay Corrector(int64_t i, int64_t order);

 private:
  using Ways = std::map<std::pair<int64_t, int64_t>, UniPcWay>;  // by step and order

  template <typename Make>
  UniPcWay Found(Ways* ways, int64_t i, int64_t order, const Make& make);

  const at::Tensor sigmas_;
  const bool bh1_;
  std::mutex mutex_;
  Ways predictors_, correctors_;
};

// The tables of the schedules that were last asked for, for all jobs of a model. Any thread.
class UniPcTables {
 public:
  explicit UniPcTables(bool bh1) : bh1_(bh1) {}

  std::shared_ptr<UniPcTable> Of(const at::Tensor& sigmas);

 private:
  const bool bh1_;
  std::mutex mutex_;
  std::deque<std::shared_ptr<UniPcTable>> recent_;  // the last one first
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SCHEDULERS_UNIPC_TABLE_H_
