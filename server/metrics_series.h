// What metrics.cc builds its table of: the bounds of its histograms' buckets, and the series of a
// family by their labels. The metrics themselves are prometheus-cpp's.
#ifndef DENOISED_SERVER_METRICS_SERIES_H_
#define DENOISED_SERVER_METRICS_SERIES_H_

#include <prometheus/client_metric.h>
#include <prometheus/histogram.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "server/metrics_text.h"

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

// What the series of a family of any kind share: the look-up by label values, and the page. Any
// thread. Nothing holds the lock for longer than the text of a piece takes, some 20 us, but
// Forget and a new series for which the table grows: some milliseconds at 50,000.
class AnySeries {
 public:
  using Values = std::vector<std::string>;  // in the order of the family's labels; no NUL in them

  // Enters itself into `all`.
  AnySeries(FamilyText text, std::vector<const AnySeries*>* all);
  virtual ~AnySeries() = default;
  AnySeries(const AnySeries&) = delete;
  AnySeries& operator=(const AnySeries&) = delete;

  // How far a page has come; it has no series that was made after its first one was written.
  struct Place {
    uint64_t next = 0, end = 0;
  };
  // Appends the series from there on, the oldest first, until `out` has `full` bytes; true where
  // none is left. A series that stays is in the page once, whatever comes and goes meanwhile, and
  // one that is made again is not in it twice.
  bool Append(Place* place, size_t full, std::string* out) const;

  void KeepOnly(const std::set<Values>& values);
  // Those whose values are such; how many are left.
  size_t Forget(const std::function<bool(const Values&)>& which);

 protected:
  struct Entry {
    virtual ~Entry() = default;
    virtual prometheus::ClientMetric Collect() const = 0;
    std::string values;   // joined by NULs
    uint64_t number = 0;  // how many were made before
  };

  // Made where there is none: then a number of values that is not the labels' is thrown as
  // logic_error. mutex_ is held.
  Entry& Find(std::initializer_list<std::string_view> values);
  virtual std::unique_ptr<Entry> Make() const = 0;

  mutable std::mutex mutex_;

 private:
  struct Slot {
    size_t hash = 0;
    Entry* entry = nullptr;
  };

  using Entries = std::vector<std::unique_ptr<Entry>>;

  // The first that has this number or a higher one.
  Entries::const_iterator From(uint64_t number) const;
  std::string_view Join(std::initializer_list<std::string_view> values);
  void Put(const Slot& slot);
  void Grow();

  const FamilyText text_;
  // All guarded by mutex_.
  Entries entries_;  // by number
  // Open addressing: the slot of a hash, or one of those behind it up to the first empty one. A
  // power of two, at most three quarters of them taken.
  std::vector<Slot> slots_;
  uint64_t next_number_ = 0;
  std::string joined_;  // room for a look-up
};

template <typename Metric, typename... Arguments>
class Series : public AnySeries {
 public:
  // Cannot be forgotten while this lives, and has the family's lock: a thread has one at a time.
  class Held {
   public:
    Held(std::unique_lock<std::mutex> lock, Metric* metric)
        : lock_(std::move(lock)), metric_(metric) {}
    Metric* operator->() const { return metric_; }

   private:
    std::unique_lock<std::mutex> lock_;
    Metric* metric_;
  };

  Series(FamilyText text, std::vector<const AnySeries*>* all, Arguments... arguments)
      : AnySeries(std::move(text), all), arguments_(std::move(arguments)...) {}

  Held At(std::initializer_list<std::string_view> values) {
    std::unique_lock lock(mutex_);
    auto& own = static_cast<Own&>(Find(values));
    return Held(std::move(lock), &own.metric);
  }

 private:
  struct Own : Entry {
    explicit Own(const Arguments&... arguments) : metric(arguments...) {}
    prometheus::ClientMetric Collect() const override { return metric.Collect(); }
    Metric metric;
  };

  std::unique_ptr<Entry> Make() const override {
    return std::apply([](const auto&... a) { return std::make_unique<Own>(a...); }, arguments_);
  }

  const std::tuple<Arguments...> arguments_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_METRICS_SERIES_H_
