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
  return std::make_unique<UniPcScheduler>(config_);
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
}

at::Tensor UniPcScheduler::Sigma(int64_t i) const { return sigma_tensor()[i]; }
at::Tensor UniPcScheduler::Alpha(int64_t i) const { return 1 - sigma_tensor()[i]; }
at::Tensor UniPcScheduler::Lambda(int64_t i) const { return at::log(Alpha(i)) - at::log(Sigma(i)); }

at::Tensor UniPcScheduler::Advance(const at::Tensor& model_output, int64_t i,
                                   const at::Tensor& sample) {
  // Sigma stays a 0-dim tensor: beside a bfloat16 tensor it is rounded to bfloat16 first, which a
  // number would not be.
  const at::Tensor clean = sample - Sigma(i).to(sample.device()) * model_output;
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

// The quantities that predictor and corrector share for the way from noise level `from` to `to`.
struct UniPcScheduler::Coefficients {
  at::Tensor ratio;        // sigma_to / sigma_from
  at::Tensor alpha;        // of `to`
  at::Tensor growth;       // expm1(-h)
  at::Tensor b_of_h;       // B(h)
  at::Tensor matrix;       // [order, order]: powers of the relative steps
  at::Tensor vector;       // [order]
  at::Tensor differences;  // [B, order - 1, ..]: divided differences of older clean predictions
};

UniPcScheduler::Coefficients UniPcScheduler::Prepare(int64_t from, int64_t to,
                                                     int64_t order) const {
  Coefficients c;
  const at::Tensor lambda = Lambda(from);
  const at::Tensor h = Lambda(to) - lambda;
  const at::Tensor hh = -h;
  c.ratio = Sigma(to) / Sigma(from);
  c.alpha = Alpha(to);
  c.growth = at::expm1(hh);
  c.b_of_h = config_.bh1 ? hh : c.growth;

  std::vector<at::Tensor> steps, differences;
  for (int64_t k = 1; k < order; ++k) {
    steps.push_back((Lambda(from - k) - lambda) / h);
    differences.push_back((clean_[k] - clean_[0]) / steps.back().to(clean_[0].device()));
  }
  steps.push_back(at::ones({}, at::kFloat));
  const at::Tensor relative = at::stack(steps);
  if (!differences.empty()) c.differences = at::stack(differences, 1);

  std::vector<at::Tensor> rows, right;
  at::Tensor phi = c.growth / hh - 1;
  int64_t factorial = 1;
  for (int64_t k = 1; k <= order; ++k) {
    rows.push_back(at::pow(relative, static_cast<double>(k - 1)));
    right.push_back(phi * factorial / c.b_of_h);
    factorial *= k + 1;
    phi = phi / hh - 1.0 / static_cast<double>(factorial);
  }
  c.matrix = at::stack(rows);
  c.vector = at::stack(right);
  return c;
}

at::Tensor UniPcScheduler::Predict(int64_t i, const at::Tensor& sample) const {
  const Coefficients c = Prepare(i, i + 1, order_);
  const at::Tensor base = c.ratio * sample - c.alpha * c.growth * clean_[0];
  if (order_ == 1) return base.to(sample.scalar_type());
  const int64_t n = order_ - 1;
  const at::Tensor rho = order_ == 2 ? at::full({1}, 0.5, sample.options())
                                     : at::linalg_solve(c.matrix.narrow(0, 0, n).narrow(1, 0, n),
                                                        c.vector.narrow(0, 0, n))
                                           .to(sample.options());
  const at::Tensor residual = at::einsum("k,bkc...->bc...", {rho, c.differences});
  return (base - c.alpha * c.b_of_h * residual).to(sample.scalar_type());
}

at::Tensor UniPcScheduler::Correct(int64_t i, const at::Tensor& clean) const {
  const Coefficients c = Prepare(i - 1, i, order_);
  const at::TensorOptions options = last_sample_.options();
  const at::Tensor rho =
      order_ == 1 ? at::full({1}, 0.5, options) : at::linalg_solve(c.matrix, c.vector).to(options);
  const at::Tensor base = c.ratio * last_sample_ - c.alpha * c.growth * clean_[0];
  at::Tensor residual = rho[order_ - 1] * (clean - clean_[0]);
  if (order_ > 1) {
    const at::Tensor older =
        at::einsum("k,bkc...->bc...", {rho.narrow(0, 0, order_ - 1), c.differences});
    residual = older + residual;
  }
  return (base - c.alpha * c.b_of_h * residual).to(last_sample_.scalar_type());
}

}  // namespace denoised
