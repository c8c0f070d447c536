// How far a backend's outputs were from another's, over the last calls that were compared, and what
// that says of a lease's budget. Torch-free plain values.
#ifndef DENOISED_RUNTIME_ATTENTION_ERROR_STATISTICS_H_
#define DENOISED_RUNTIME_ATTENTION_ERROR_STATISTICS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/budget.h"

namespace denoised {

// Of one call, as ErrorMetric has them: not below 0, and infinity where an output was not finite.
struct CallError {
  double relative_l2 = 0, max_abs = 0, cosine_distance = 0;
  double Of(ErrorMetric metric) const;
};

// Of `values` and of so many zeros that there are `count` of them. A percentile is one of them: the
// smallest that so many do not exceed. 0 where there are none.
double StatisticOf(std::vector<double> values, Statistic statistic, size_t count);

class ErrorStatistics {
 public:
  // Of the last so many samples.
  explicit ErrorStatistics(size_t last) : last_(last) {}

  void Add(const CallError& error);
  int64_t total() const { return total_; }  // ever added
  double Of(ErrorMetric metric, Statistic statistic) const;

 private:
  size_t last_;
  int64_t total_ = 0;
  std::vector<CallError> errors_;  // a ring
};

// A budget with the last samples that count for it. It is broken as soon as nothing that could
// still come would hold it: of "p99 < 0.02 over 200" by the third sample that is not below 0.02,
// whatever the others are. Until there are as many samples as it wants, it holds unless that is so.
class BudgetSamples {
 public:
  explicit BudgetSamples(const Budget& budget) : budget_(budget) {}

  void Add(const CallError& error);
  int64_t total() const { return total_; }  // ever added
  // What its statistic is, or is at least where samples are still missing.
  double AtLeast() const;
  // In a sentence; nothing where it holds.
  std::optional<std::string> WhyBroken() const;

 private:
  bool Broken() const;

  Budget budget_;
  int64_t total_ = 0;
  int64_t far_ = 0;             // of values_: not below the limit
  std::vector<double> values_;  // of its metric, a ring
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_ERROR_STATISTICS_H_
