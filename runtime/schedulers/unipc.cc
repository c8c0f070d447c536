#include "runtime/schedulers/unipc.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "backends/error.h"
#include "runtime/loaders/config.h"

namespace denoised {
namespace {

UniPcScheduler::Config ReadConfig(const ConfigReader& reader) {
  // One way through the reference is built: flow prediction of x0 with flow sigmas down to zero.
  // Keys that must be present are those whose default in diffusers is another way.
  if (!reader.Has("prediction_type") || !reader.Has("use_flow_sigmas")) {
    throw Error(StatusCode::kInvalidArgument,
                reader.path() +
                    ": prediction_type, use_flow_sigmas: wanted \"flow_prediction\" "
                    "and true, came nothing");
  }
  reader.RequireOneOf("prediction_type", {"flow_prediction"});
  reader.RequireOneOf("use_flow_sigmas", {true});
  reader.RequireOneOf("predict_x0", {true});
  reader.RequireOneOf("final_sigmas_type", {"zero"});
  // With sigma ending in zero a higher last order divides by zero.
  reader.RequireOneOf("lower_order_final", {true});
  for (const char* key : {"thresholding", "use_karras_sigmas", "use_exponential_sigmas",
                          "use_beta_sigmas", "use_dynamic_shifting"}) {
    reader.RequireOneOf(key, {false});
  }
  reader.RequireOneOf("solver_p", {nullptr});
  reader.RequireOneOf("shift_terminal", {nullptr});
  reader.RequireOneOf("timestep_spacing", {"linspace", "leading", "trailing"});
  reader.RequireOneOf("solver_type", {"bh1", "bh2", "midpoint", "heun", "logrho"});
  UniPcScheduler::Config config;
  config.num_train_timesteps = reader.Int("num_train_timesteps", 1000, 1, 1 << 20);
  config.solver_order = reader.Int("solver_order", 2, 1, 3);
  config.bh1 = reader.String("solver_type", "bh2") == "bh1";  // other old names mean bh2
  config.disable_corrector = reader.Ints("disable_corrector", {});
  config.flow_shift = reader.Double("flow_shift", 1.0);
  if (!(std::isfinite(config.flow_shift) && config.flow_shift > 0)) {
    throw Error(StatusCode::kInvalidArgument, reader.path() +
                                                  ": flow_shift: wanted a positive number, came " +
                                                  reader.json().at("flow_shift").dump());
  }
  return config;
}

constexpr char kLastSample[] = "last_sample";

// Of the k-th newest.
std::string CleanName(int64_t k) { return "clean." + std::to_string(k); }

}  // namespace

UniPcScheduler::UniPcScheduler(const ConfigReader& reader) : config_(ReadConfig(reader)) {}

std::unique_ptr<Scheduler> UniPcScheduler::Clone() const {
  auto clone = std::make_unique<UniPcScheduler>(config_);
  clone->tables_ = tables_;
  return clone;
}

std::unique_ptr<Scheduler> UniPcScheduler::Copy() const {
  return std::make_unique<UniPcScheduler>(*this);
}

at::Tensor UniPcScheduler::TimestepTensor(int64_t i, int64_t batch, at::Device device) const {
  return at::full({batch}, static_cast<int64_t>(timesteps().at(i)),
                  at::TensorOptions(at::kLong).device(device));
}

std::vector<double> UniPcScheduler::MakeSigmas(int64_t steps, std::optional<double> shift) const {
  const double s = shift.value_or(config_.flow_shift);
  const double train = static_cast<double>(config_.num_train_timesteps);
  std::vector<double> sigmas = Linspace(1.0, 1.0 / train, steps + 1);
  sigmas.pop_back();
  for (double& sigma : sigmas) sigma = s * sigma / (1 + (s - 1) * sigma);
  return sigmas;
}

void UniPcScheduler::LayOut(std::vector<double> sigmas) {
  const double train = static_cast<double>(config_.num_train_timesteps);
  // Keeps log(1 - sigma) finite.
  if (std::fabs(sigmas[0] - 1) < 1e-6) sigmas[0] -= 1e-6;
  std::vector<double> timesteps;
  for (double sigma : sigmas) timesteps.push_back(std::trunc(sigma * train));
  sigmas.push_back(0.0);
  KeepSchedule(std::move(timesteps),
               at::tensor(at::ArrayRef<double>(sigmas), at::kDouble).to(at::kFloat));
  table_.reset();
}

at::Tensor UniPcScheduler::Advance(const at::Tensor& model_output, int64_t i,
                                   const at::Tensor& sample) {
  if (table_ == nullptr) table_ = tables_->Of(sigma_tensor());
  // Sigma stays a 0-dim tensor: beside a bfloat16 tensor it is rounded to bfloat16 first, which a
  // number would not be.
  const at::Tensor clean = sample - sigma_tensor()[i] * model_output;
  const at::Tensor corrected = Corrects(i) ? Correct(i, clean) : sample;
  clean_.push_front(clean);
  if (static_cast<int64_t>(clean_.size()) > CleanAfter(i)) clean_.pop_back();
  order_ = OrderAt(i);
  last_sample_ = corrected;
  return Predict(i, corrected);
}

bool UniPcScheduler::Corrects(int64_t i) const {
  const auto& disabled = config_.disable_corrector;
  return i > first_step() && std::find(disabled.begin(), disabled.end(), i - 1) == disabled.end();
}

int64_t UniPcScheduler::OrderAt(int64_t i) const {
  return std::min({config_.solver_order, steps() - i, i - first_step() + 1});
}

int64_t UniPcScheduler::CleanAfter(int64_t i) const {
  return std::min(config_.solver_order, i - first_step() + 1);
}

std::string UniPcScheduler::Solver() const {
  std::string uncorrected;
  for (int64_t step : config_.disable_corrector) uncorrected += " " + std::to_string(step);
  return "UniPC of order " + std::to_string(config_.solver_order) +
         (config_.bh1 ? " with bh1" : " with bh2") + " of " +
         std::to_string(config_.num_train_timesteps) + " timesteps, corrector off after [" +
         uncorrected + " ]";
}

std::vector<std::string> UniPcScheduler::HistoryNames(int64_t next_step) const {
  if (next_step == first_step()) return {};
  std::vector<std::string> names = {kLastSample};
  for (int64_t k = 0; k < CleanAfter(next_step - 1); ++k) names.push_back(CleanName(k));
  return names;
}

Scheduler::History UniPcScheduler::GetHistory() const {
  History history;
  if (last_sample_.defined()) history[kLastSample] = last_sample_;
  for (size_t k = 0; k < clean_.size(); ++k) {
    history[CleanName(static_cast<int64_t>(k))] = clean_[k];
  }
  return history;
}

void UniPcScheduler::SetHistory(int64_t next_step, const History& history) {
  clean_.clear();
  last_sample_ = at::Tensor();
  order_ = 1;
  if (next_step == first_step()) return;
  for (int64_t k = 0; k < CleanAfter(next_step - 1); ++k)
    clean_.push_back(history.at(CleanName(k)));
  last_sample_ = history.at(kLastSample);
  order_ = OrderAt(next_step - 1);
}

// The divided differences of older clean predictions against the newest, weighed and summed.
at::Tensor UniPcScheduler::Older(const UniPcWay& way) const {
  std::vector<at::Tensor> differences;
  for (int64_t k = 1; k < order_; ++k) {
    differences.push_back((clean_[k] - clean_[0]) / way.steps[k - 1]);
  }
  if (differences.size() == 1) return way.weights[0] * differences[0];
  // As the reference has it: the sum of several is a matrix product's.
  const at::Tensor& first = differences[0];
  const at::Tensor weights =
      at::tensor(at::ArrayRef<float>(way.weights.data(), differences.size()), first.options());
  return at::einsum("k,bkc...->bc...", {weights, at::stack(differences, 1)});
}

at::Tensor UniPcScheduler::Predict(int64_t i, const at::Tensor& sample) const {
  const UniPcWay way = table_->Predictor(i, order_);
  const at::Tensor base = Base(way, sample);
  if (order_ == 1) return base;
  return base - way.spread * Older(way);
}

at::Tensor UniPcScheduler::Correct(int64_t i, const at::Tensor& clean) const {
  const UniPcWay way = table_->Corrector(i, order_);
  at::Tensor residual = way.weights[order_ - 1] * (clean - clean_[0]);
  if (order_ > 1) residual = Older(way) + residual;
  return Base(way, last_sample_) - way.spread * residual;
}

// What both begin with: the first-order way from `sample`.
at::Tensor UniPcScheduler::Base(const UniPcWay& way, const at::Tensor& sample) const {
  return way.ratio * sample - way.growth * clean_[0];
}

}  // namespace denoised
