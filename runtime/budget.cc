#include "runtime/budget.h"

#include <array>
#include <charconv>
#include <cmath>
#include <sstream>

#include "backends/error.h"

namespace denoised {
namespace {

// In the enums' orders.
constexpr std::array<std::string_view, 3> kMetrics = {"relative_l2", "max_abs", "cosine_distance"};
constexpr std::array<std::string_view, 5> kStatistics = {"mean", "p50", "p90", "p99", "max"};

constexpr int64_t kMostSamples = 100'000;

template <typename E, size_t N>
std::optional<E> Find(const std::array<std::string_view, N>& names, std::string_view name) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<E>(i);
  }
  return std::nullopt;
}

template <typename T>
bool Read(const std::string& text, T* value) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return failed == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string_view ErrorMetricName(ErrorMetric metric) {
  return kMetrics[static_cast<size_t>(metric)];
}
std::string_view StatisticName(Statistic statistic) {
  return kStatistics[static_cast<size_t>(statistic)];
}
std::optional<ErrorMetric> ErrorMetricFromName(std::string_view name) {
  return Find<ErrorMetric>(kMetrics, name);
}
std::optional<Statistic> StatisticFromName(std::string_view name) {
  return Find<Statistic>(kStatistics, name);
}

std::string ToText(const Budget& budget) {
  char limit[32];
  const auto end = std::to_chars(limit, limit + sizeof limit, budget.limit).ptr;
  return std::string(ErrorMetricName(budget.metric)) + " " +
         std::string(StatisticName(budget.statistic)) + " < " + std::string(limit, end) + " over " +
         std::to_string(budget.samples);
}

std::optional<Budget> ParseBudget(std::string_view text) {
  std::istringstream words{std::string(text)};
  std::string metric, statistic, less, limit, over, samples, more;
  words >> metric >> statistic >> less >> limit >> over >> samples;
  const auto of = ErrorMetricFromName(metric);
  const auto as = StatisticFromName(statistic);
  if (!of || !as || less != "<" || over != "over" || words >> more) return std::nullopt;
  Budget budget{*of, *as, 0, 0};
  if (!Read(limit, &budget.limit) || !Read(samples, &budget.samples)) return std::nullopt;
  return budget;
}

void CheckBudget(const Budget& budget, const std::string& field) {
  if (!(budget.limit > 0) || !std::isfinite(budget.limit)) {
    throw InvalidField(field + ".limit", "wanted a finite number above 0");
  }
  if (budget.samples < 1 || budget.samples > kMostSamples) {
    throw InvalidField(field + ".samples", "wanted 1 to " + std::to_string(kMostSamples) +
                                               "; got " + std::to_string(budget.samples));
  }
}

}  // namespace denoised
