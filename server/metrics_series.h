// What metrics.cc builds its table of: the bounds of its histograms' buckets, and the series of a
// family by their labels. Sees Prometheus.
#ifndef DENOISED_SERVER_METRICS_SERIES_H_
#define DENOISED_SERVER_METRICS_SERIES_H_

#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/labels.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace denoised {

// Video takes from milliseconds (a step of a small model) to an hour (a long clip).
inline const prometheus::Histogram::BucketBoundaries& SecondsBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,  1,    2.5,
      5,     10,     20,    30,   60,    120,  300, 600,  1200, 1800, 3600};
  return kBuckets;
}

inline const prometheus::Histogram::BucketBoundaries& BatchBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {1,  2,  3,  4,  6, 8,
                                                                   12, 16, 24, 32, 64};
  return kBuckets;
}

inline const prometheus::Histogram::BucketBoundaries& TokenBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {
      64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288};
  return kBuckets;
}

// From rounding to nothing in common.
inline const prometheus::Histogram::BucketBoundaries& ErrorBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {
      1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1};
  return kBuckets;
}

// The series of one family by their label values. Adding to a prometheus::Family builds a metric
// just to find that it exists; this remembers the ones that do.
template <typename Metric, typename... Arguments>
class Series {
 public:
  Series(prometheus::Family<Metric>& family, std::vector<std::string> names, Arguments... arguments)
      : family_(family), names_(std::move(names)), arguments_(std::move(arguments)...) {}

  Metric& At(const std::vector<std::string>& values) {
    std::lock_guard lock(mutex_);
    Metric*& metric = metrics_[values];
    if (metric == nullptr) metric = &Make(values);
    return *metric;
  }

  void KeepOnly(const std::set<std::vector<std::string>>& values) {
    Forget([&](const std::vector<std::string>& own) { return !values.contains(own); });
  }

  // Those whose values are such; how many are left.
  template <typename Which>
  size_t Forget(const Which& which) {
    std::lock_guard lock(mutex_);
    std::erase_if(metrics_, [&](const auto& entry) {
      if (!which(entry.first)) return false;
      family_.Remove(entry.second);
      return true;
    });
    return metrics_.size();
  }

 private:
  Metric& Make(const std::vector<std::string>& values) {
    prometheus::Labels labels;
    for (size_t i = 0; i < names_.size(); ++i) labels[names_[i]] = values.at(i);
    return std::apply([&](const auto&... a) -> Metric& { return family_.Add(labels, a...); },
                      arguments_);
  }

  prometheus::Family<Metric>& family_;
  const std::vector<std::string> names_;
  const std::tuple<Arguments...> arguments_;
  std::mutex mutex_;
  std::map<std::vector<std::string>, Metric*> metrics_;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_SERVER_METRICS_SERIES_H_
