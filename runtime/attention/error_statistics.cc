#include "runtime/attention/error_statistics.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace denoised {
namespace {

// Which of `count` values in order a percentile is, from 1; the last one for the largest.
size_t RankOf(Statistic statistic, size_t count) {
  const auto hundredths = [&](size_t percent) { return (percent * count + 99) / 100; };
  switch (statistic) {
    case Statistic::kP50:
      return hundredths(50);
    case Statistic::kP90:
      return hundredths(90);
    case Statistic::kP99:
      return hundredths(99);
    default:
      return count;
  }
}

std::string Short(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", number);
  return text;
}

}  // namespace

double CallError::Of(ErrorMetric metric) const {
  switch (metric) {
    case ErrorMetric::kRelativeL2:
      return relative_l2;
    case ErrorMetric::kMaxAbs:
      return max_abs;
    case ErrorMetric::kCosineDistance:
      break;
  }
  return cosine_distance;
}

double StatisticOf(std::vector<double> values, Statistic statistic, size_t count) {
  if (values.empty()) return 0;
  if (statistic == Statistic::kMean) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(count);
  }
  const size_t zeros = count - values.size(), rank = RankOf(statistic, count);
  if (rank <= zeros) return 0;
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(rank - zeros - 1);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

void ErrorStatistics::Add(const CallError& error) {
  if (errors_.size() < last_) {
    errors_.push_back(error);
  } else {
    errors_[static_cast<size_t>(total_) % last_] = error;
  }
  ++total_;
}

double ErrorStatistics::Of(ErrorMetric metric, Statistic statistic) const {
  std::vector<double> values;
  for (const CallError& error : errors_) values.push_back(error.Of(metric));
  return StatisticOf(std::move(values), statistic, errors_.size());
}

void BudgetSamples::Add(const CallError& error) {
  const auto wanted = static_cast<size_t>(budget_.samples);
  if (values_.size() < wanted) values_.push_back(0);
  double& place = values_[static_cast<size_t>(total_++) % wanted];
  if (place >= budget_.limit) --far_;
  place = error.Of(budget_.metric);
  if (place >= budget_.limit) ++far_;
}

double BudgetSamples::AtLeast() const {
  return StatisticOf(values_, budget_.statistic, static_cast<size_t>(budget_.samples));
}

// Asked after each step: a percentile by counting, without looking at all samples.
bool BudgetSamples::Broken() const {
  if (budget_.statistic == Statistic::kMean) return AtLeast() >= budget_.limit;
  const auto wanted = static_cast<size_t>(budget_.samples);
  return static_cast<size_t>(far_) > wanted - RankOf(budget_.statistic, wanted);
}

std::optional<std::string> BudgetSamples::WhyBroken() const {
  if (!Broken()) return std::nullopt;
  const bool all = total_ >= budget_.samples;
  return "its budget is " + ToText(budget_) + ", and " + (all ? "it is at " : "it is at least ") +
         Short(AtLeast()) + (all ? "" : " by " + std::to_string(total_) + " samples alone");
}

}  // namespace denoised
