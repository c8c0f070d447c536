#include "runtime/schedulers/flow_match_euler.h"

#include <cmath>
#include <string>

#include "backends/error.h"
#include "runtime/loaders/config.h"

namespace denoised {
namespace {

FlowMatchEulerScheduler::Config ReadConfig(const ConfigReader& reader) {
  for (const char* key : {"use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas",
                          "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling"}) {
    reader.RequireOneOf(key, {false});
  }
  reader.RequireOneOf("shift_terminal", {nullptr});
  FlowMatchEulerScheduler::Config config;
  config.num_train_timesteps = reader.Int("num_train_timesteps", 1000, 1, 1 << 20);
  config.shift = reader.Double("shift", 1.0);
  if (!(std::isfinite(config.shift) && config.shift > 0)) {
    throw Error(StatusCode::kInvalidArgument, reader.path() +
                                                  ": shift: wanted a positive number, came " +
                                                  reader.json().at("shift").dump());
  }
  return config;
}

// The noise level of training step `k` of `train`, in float32 as the reference's table is.
double TableSigma(double k, double train, double shift) {
  const at::Tensor sigma = at::full({1}, k, at::kFloat) / train;
  return (shift * sigma / (1 + (shift - 1) * sigma)).item<float>();
}

}  // namespace

FlowMatchEulerScheduler::FlowMatchEulerScheduler(const ConfigReader& reader)
    : config_(ReadConfig(reader)) {}

std::unique_ptr<Scheduler> FlowMatchEulerScheduler::Clone() const {
  return std::make_unique<FlowMatchEulerScheduler>(config_);
}

std::unique_ptr<Scheduler> FlowMatchEulerScheduler::Copy() const {
  return std::make_unique<FlowMatchEulerScheduler>(*this);
}

at::Tensor FlowMatchEulerScheduler::TimestepTensor(int64_t i, int64_t batch,
                                                   at::Device device) const {
  return timestep_tensor_[i].expand({batch}).contiguous().to(device);
}

std::vector<double> FlowMatchEulerScheduler::MakeSigmas(int64_t steps,
                                                        std::optional<double> shift) const {
  const double s = shift.value_or(config_.shift);
  const double train = static_cast<double>(config_.num_train_timesteps);
  std::vector<double> sigmas =
      Linspace(TableSigma(train, train, s) * train, TableSigma(1, train, s) * train, steps);
  for (double& sigma : sigmas) {
    sigma /= train;
    sigma = s * sigma / (1 + (s - 1) * sigma);
  }
  return sigmas;
}

void FlowMatchEulerScheduler::LayOut(std::vector<double> sigmas) {
  const double train = static_cast<double>(config_.num_train_timesteps);
  const at::Tensor levels = at::tensor(at::ArrayRef<double>(sigmas), at::kDouble).to(at::kFloat);
  timestep_tensor_ = levels * train;
  std::vector<double> timesteps;
  for (int64_t i = 0; i < timestep_tensor_.size(0); ++i) {
    timesteps.push_back(timestep_tensor_[i].item<float>());
  }
  KeepSchedule(std::move(timesteps), at::cat({levels, at::zeros({1}, at::kFloat)}));
}

std::string FlowMatchEulerScheduler::Solver() const {
  return "flow-match Euler of " + std::to_string(config_.num_train_timesteps) + " timesteps";
}

at::Tensor FlowMatchEulerScheduler::Advance(const at::Tensor& model_output, int64_t i,
                                            const at::Tensor& sample) {
  const at::Tensor step = (sigma_tensor()[i + 1] - sigma_tensor()[i]).to(sample.device());
  return (sample.to(at::kFloat) + step * model_output).to(model_output.scalar_type());
}

}  // namespace denoised
