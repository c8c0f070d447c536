#include "runtime/engine/cost_law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

namespace denoised {
namespace {

constexpr size_t kTerms = 5;
using Vector = std::array<double, kTerms>;
using Matrix = std::array<Vector, kTerms>;

// Relative errors below it are noise.
constexpr double kNoise = 0.02;
// What a term must win before it is believed, beside its share of Schwarz's criterion. Of one
// sample all terms say the same: multiply-adds are the likeliest.
constexpr Vector kDoubt = {0.3, 0.4, 0.0, 0.5, 0.6};
// How far a neighbour's error reaches, in powers of e of the size, and the weight of "no error".
constexpr double kReach = 0.5;
constexpr double kTrustInLaw = 0.5;
// Seconds. A law without a constant would have a unit whose sizes nobody knows take no time.
constexpr double kLeast = 1e-6;

// Least squares over the terms in `chosen`, from the normal equations; empty where they are not
// independent or one would be negative.
std::optional<Vector> Solve(Matrix gram, Vector right, unsigned chosen) {
  Vector solution = {};
  for (size_t i = 0; i < kTerms; ++i) {
    if ((chosen >> i & 1) == 0) continue;
    if (gram[i][i] < 1e-9) return std::nullopt;
    for (size_t j = i + 1; j < kTerms; ++j) {
      if ((chosen >> j & 1) == 0) continue;
      const double factor = gram[j][i] / gram[i][i];
      for (size_t k = i; k < kTerms; ++k) gram[j][k] -= factor * gram[i][k];
      right[j] -= factor * right[i];
    }
  }
  for (size_t i = kTerms; i-- > 0;) {
    if ((chosen >> i & 1) == 0) continue;
    double value = right[i];
    for (size_t k = i + 1; k < kTerms; ++k) value -= gram[i][k] * solution[k];
    solution[i] = value / gram[i][i];
    if (solution[i] < 0) return std::nullopt;
  }
  return solution;
}

double Product(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < kTerms; ++i) sum += a[i] * b[i];
  return sum;
}

// How far apart two shapes are, as logarithms.
double Distance(const UnitSize& a, const UnitSize& b) {
  const auto apart = [](double x, double y) {
    return x > 0 && y > 0 ? std::abs(std::log(x / y)) : 0;
  };
  return apart(a.multiply_adds, b.multiply_adds) + apart(a.tokens, b.tokens) +
         apart(a.rows, b.rows);
}

}  // namespace

CostLaw::Terms CostLaw::TermsOf(const UnitSize& size) {
  return {1, size.rows, size.rows * size.multiply_adds, size.rows * size.tokens,
          size.rows * size.tokens * size.tokens};
}

CostLaw::CostLaw(std::vector<Sample> samples) : samples_(std::move(samples)) {
  if (samples_.empty()) return;
  Fit();
  for (const Sample& sample : samples_) {
    missed_.push_back(std::log(sample.seconds / Law(sample.size)));
  }
}

void CostLaw::Fit() {
  // Relative errors: each row of the system is divided by its time.
  Matrix gram = {};
  Vector right = {}, scale = {};
  double weights = 0;
  for (const Sample& sample : samples_) {
    Vector terms = TermsOf(sample.size);
    for (double& term : terms) term /= sample.seconds;
    weights += sample.weight;
    for (size_t i = 0; i < kTerms; ++i) {
      right[i] += sample.weight * terms[i];
      for (size_t j = 0; j < kTerms; ++j) gram[i][j] += sample.weight * terms[i] * terms[j];
    }
  }
  for (size_t i = 0; i < kTerms; ++i) scale[i] = gram[i][i] > 0 ? 1 / std::sqrt(gram[i][i]) : 0;
  for (size_t i = 0; i < kTerms; ++i) {
    right[i] *= scale[i];
    for (size_t j = 0; j < kTerms; ++j) gram[i][j] *= scale[i] * scale[j];
  }
  // The best of all subsets is the best without negative coefficients.
  const double count = static_cast<double>(samples_.size());
  double best = std::numeric_limits<double>::infinity();
  for (unsigned chosen = 1; chosen < 1u << kTerms; ++chosen) {
    const auto solution = Solve(gram, right, chosen);
    if (!solution) continue;
    double quadratic = 0, doubt = 0;
    for (size_t i = 0; i < kTerms; ++i) {
      quadratic += (*solution)[i] * Product(gram[i], *solution);
      doubt += (chosen >> i & 1) != 0 ? std::log(count + 1) + kDoubt[i] : 0;
    }
    const double error =
        std::max(0.0, weights - 2 * Product(right, *solution) + quadratic) / weights;
    const double score = count * std::log(error + kNoise * kNoise) + doubt;
    if (score >= best) continue;
    best = score;
    for (size_t i = 0; i < kTerms; ++i) coefficients_[i] = (*solution)[i] * scale[i];
  }
}

double CostLaw::Law(const UnitSize& size) const {
  return std::max(kLeast, Product(TermsOf(size), coefficients_));
}

double CostLaw::Seconds(const UnitSize& size) const {
  double missed = 0, weights = kTrustInLaw;
  for (size_t i = 0; i < samples_.size(); ++i) {
    const double weight = samples_[i].weight * std::exp(-Distance(size, samples_[i].size) / kReach);
    missed += weight * missed_[i];
    weights += weight;
  }
  return Law(size) * std::exp(missed / weights);
}

}  // namespace denoised
