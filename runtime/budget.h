// How far a lease's backend may be from what would run without it. Torch-free plain value.
#ifndef DENOISED_RUNTIME_BUDGET_H_
#define DENOISED_RUNTIME_BUDGET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace denoised {

// Of the outputs of one attention call, both as float64: |a - b| / |b|, max |a - b|, and
// 1 - a.b / (|a| |b|), where b is the baseline's.
enum class ErrorMetric : uint8_t { kRelativeL2, kMaxAbs, kCosineDistance };
std::string_view ErrorMetricName(
    ErrorMetric metric);  // "relative_l2", "max_abs", "cosine_distance"

enum class Statistic : uint8_t { kMean, kP50, kP90, kP99, kMax };
std::string_view StatisticName(Statistic statistic);  // "mean", "p50", "p90", "p99", "max"

// Holds while `statistic` of the metric over the last `samples` sampled calls is below `limit`, and
// with fewer while those that are missing could bring it there (attention/error_statistics.h).
struct Budget {
  ErrorMetric metric = ErrorMetric::kRelativeL2;
  Statistic statistic = Statistic::kP99;
  double limit = 0;       // above 0
  int64_t samples = 200;  // 1..100000
  bool operator==(const Budget&) const = default;
};

// "relative_l2 p99 < 0.02 over 200", and back: empty for any other text.
std::string ToText(const Budget& budget);
std::optional<Budget> ParseBudget(std::string_view text);

std::optional<ErrorMetric> ErrorMetricFromName(std::string_view name);
std::optional<Statistic> StatisticFromName(std::string_view name);
// Throws InvalidField naming `field`.
void CheckBudget(const Budget& budget, const std::string& field);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_BUDGET_H_
