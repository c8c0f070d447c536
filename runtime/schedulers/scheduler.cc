#include "runtime/schedulers/scheduler.h"

#include <c10/core/InferenceMode.h>

#include <cmath>
#include <string>

#include "backends/error.h"
#include "runtime/loaders/config.h"
#include "runtime/schedulers/flow_match_euler.h"
#include "runtime/schedulers/unipc.h"

namespace denoised {
namespace {

constexpr int64_t kMaxSteps = 10000;

// The writer's defaults, which it wrote down but lists as not chosen, need not be the reader's.
ConfigReader WithoutDefaults(const ConfigReader& reader) {
  nlohmann::json chosen = reader.json();
  const auto list = chosen.find("_use_default_values");
  if (list == chosen.end() || !list->is_array()) return reader;
  const nlohmann::json keys = *list;
  for (const nlohmann::json& key : keys) {
    if (key.is_string()) chosen.erase(key.get<std::string>());
  }
  return ConfigReader(std::move(chosen), reader.path());
}

}  // namespace

std::unique_ptr<Scheduler> Scheduler::Create(const std::string& class_name,
                                             const ConfigReader& reader) {
  const ConfigReader own = WithoutDefaults(reader);
  if (class_name == "UniPCMultistepScheduler") return std::make_unique<UniPcScheduler>(own);
  if (class_name == "FlowMatchEulerDiscreteScheduler") {
    return std::make_unique<FlowMatchEulerScheduler>(own);
  }
  throw Error(StatusCode::kInvalidArgument,
              reader.path() +
                  ": _class_name: wanted \"UniPCMultistepScheduler\" or "
                  "\"FlowMatchEulerDiscreteScheduler\", came \"" +
                  class_name + "\"",
              reader.path(), "UNSUPPORTED_SCHEDULER");
}

void Scheduler::SetTimesteps(int64_t steps, std::optional<double> shift) {
  if (steps < 1 || steps > kMaxSteps) {
    throw InvalidField("num_inference_steps", "wanted 1 to " + std::to_string(kMaxSteps) +
                                                  ", came " + std::to_string(steps));
  }
  if (shift && !(std::isfinite(*shift) && *shift > 0)) {
    throw InvalidField("flow_shift", "wanted a positive number, came " + std::to_string(*shift));
  }
  next_step_ = 0;
  MakeSchedule(steps, shift);
}

at::Tensor Scheduler::Step(const at::Tensor& model_output, int64_t i, const at::Tensor& sample) {
  c10::InferenceMode guard;
  if (i != next_step_ || i >= steps()) {
    throw Error(StatusCode::kFailedPrecondition,
                "scheduler: wanted step " + std::to_string(next_step_) + " of " +
                    std::to_string(steps()) + ", came step " + std::to_string(i));
  }
  if (model_output.sizes() != sample.sizes()) {
    throw Error(StatusCode::kInvalidArgument,
                "scheduler: the model's output and the latents differ in shape");
  }
  at::Tensor next = Advance(model_output, i, sample);
  ++next_step_;
  return next;
}

void Scheduler::KeepSchedule(std::vector<double> timesteps, const at::Tensor& sigmas) {
  timesteps_ = std::move(timesteps);
  sigma_tensor_ = sigmas;
  sigmas_.clear();
  for (int64_t i = 0; i < sigmas.size(0); ++i) sigmas_.push_back(sigmas[i].item<float>());
}

std::vector<double> Linspace(double start, double stop, int64_t count) {
  std::vector<double> values(count, start);
  if (count < 2) return values;
  const double step = (stop - start) / static_cast<double>(count - 1);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<double>(i) * step + start;
  values.back() = stop;
  return values;
}

}  // namespace denoised
