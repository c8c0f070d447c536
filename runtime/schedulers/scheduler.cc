#include "runtime/schedulers/scheduler.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <functional>
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

constexpr char kSchedule[] = "sigmas";

std::string Described(const at::Tensor& x) {
  std::string shape;
  for (int64_t size : x.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  return std::string(c10::toString(x.scalar_type())) + " [" + shape + "]";
}

Error DoesNotFit(const std::string& wanted, const std::string& came) {
  return Error(StatusCode::kInvalidArgument,
               "the saved solver does not fit: wanted " + wanted + ", came " + came);
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
  LayOut(MakeSigmas(steps, shift));
  BeginAt(0);
}

void Scheduler::SetSigmas(const std::vector<double>& sigmas) {
  const auto count = static_cast<int64_t>(sigmas.size());
  if (count < 1 || count > kMaxSteps) {
    throw InvalidField("sigmas", "wanted 1 to " + std::to_string(kMaxSteps) + " of them, came " +
                                     std::to_string(count));
  }
  const auto out = [](double sigma) { return !(sigma > 0 && sigma <= 1); };
  if (const auto found = std::find_if(sigmas.begin(), sigmas.end(), out); found != sigmas.end()) {
    throw InvalidField("sigmas", "each is above 0 and at most 1, came " + std::to_string(*found));
  }
  LayOut(sigmas);
  if (!std::is_sorted(sigmas_.begin(), sigmas_.end(), std::greater_equal<>())) {
    throw InvalidField("sigmas", "each must be below the one before it, in float32");
  }
  BeginAt(0);
}

void Scheduler::BeginAt(int64_t step) {
  if (step < 0 || step > steps()) {
    throw InvalidField("step", "must be between 0 and " + std::to_string(steps()) + ", got " +
                                   std::to_string(step));
  }
  first_step_ = next_step_ = step;
  SetHistory(step, {});
}

std::string Scheduler::SolverAndBegin() const {
  if (first_step_ == 0) return Solver();
  return Solver() + ", begun at step " + std::to_string(first_step_);
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

SolverState Scheduler::Save() const {
  const c10::InferenceMode guard;
  SolverState state{SolverAndBegin(), next_step_, GetHistory()};
  state.tensors[kSchedule] = sigma_tensor_;
  for (auto& [name, tensor] : state.tensors) tensor = tensor.to(at::kCPU);
  return state;
}

void Scheduler::Restore(const SolverState& state, const at::Tensor& latents) {
  const c10::InferenceMode guard;
  CheckFits(state, latents);
  History history = state.tensors;
  history.erase(kSchedule);
  // Contiguous, as a step leaves them; a copy, so that the history is nobody else's.
  for (auto& [name, tensor] : history) {
    tensor = at::empty(latents.sizes(), latents.options()).copy_(tensor);
  }
  SetHistory(state.next_step, history);
  next_step_ = state.next_step;
}

void Scheduler::CheckFits(const SolverState& state, const at::Tensor& latents) const {
  if (state.solver != SolverAndBegin()) throw DoesNotFit(SolverAndBegin(), state.solver);
  if (state.next_step < 0 || state.next_step > steps()) {
    throw DoesNotFit("a step from 0 to " + std::to_string(steps()),
                     std::to_string(state.next_step));
  }
  std::vector<std::string> names = HistoryNames(state.next_step);
  for (const std::string& name : names) {
    const auto found = state.tensors.find(name);
    const bool given = found != state.tensors.end() && found->second.defined();
    if (given && found->second.sizes() == latents.sizes() &&
        found->second.scalar_type() == latents.scalar_type()) {
      continue;
    }
    throw DoesNotFit(name + " as the latents, " + Described(latents),
                     given ? Described(found->second) : "nothing");
  }
  names.push_back(kSchedule);
  for (const auto& [name, tensor] : state.tensors) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    throw DoesNotFit("what step " + std::to_string(state.next_step) + " needs", name);
  }
  const auto schedule = state.tensors.find(kSchedule);
  const bool same = schedule != state.tensors.end() && schedule->second.defined() &&
                    schedule->second.scalar_type() == sigma_tensor_.scalar_type() &&
                    at::equal(schedule->second.to(at::kCPU), sigma_tensor_);
  if (!same) throw DoesNotFit("the noise levels of this schedule", "others");
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
