#include "runtime/engine/unit_times.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>

namespace denoised {
namespace {

constexpr size_t kKept = 32;          // times of a number of rows
constexpr size_t kMaxRowCounts = 64;  // numbers of rows
constexpr int64_t kEnough = 5;        // times, to judge by
constexpr uint64_t kFresh = 256;      // observations; what is older is tried again
constexpr double kPays = 1.5;    // of what a row takes without this one: a loss beyond any noise
constexpr double kShared = 0.5;  // what a further row is taken to add before one was tried

double MiddleMean(std::vector<double> times) {
  if (times.size() < 3) return *std::min_element(times.begin(), times.end());
  std::sort(times.begin(), times.end());
  const auto off = static_cast<std::ptrdiff_t>((times.size() + 1) / 4);
  const auto begin = times.begin() + off, end = times.end() - off;
  return std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
}

}  // namespace

void RecentTimes::Add(double seconds, uint64_t now) {
  if (ring_.size() < kKept) {
    ring_.push_back(seconds);
  } else {
    ring_[next_] = seconds;
    next_ = (next_ + 1) % kKept;
  }
  typical_ = MiddleMean(ring_);
  last_ = now;
}

void UnitTimes::Add(int64_t rows, double seconds) {
  by_rows_[rows].Add(seconds, ++observations_);
  if (by_rows_.size() > kMaxRowCounts) ForgetOldest();
}

void UnitTimes::ForgetOldest() {
  by_rows_.erase(std::min_element(
      by_rows_.begin(), by_rows_.end(),
      [](const auto& a, const auto& b) { return a.second.last() < b.second.last(); }));
}

// The slope of the line through all, each point weighed by its relative error; never negative, and
// never so steep that a call would cost less than nothing.
double UnitTimes::SecondsOfARow() const {
  double w = 0, wr = 0, wt = 0, wrr = 0, wrt = 0, least = std::numeric_limits<double>::max();
  for (const auto& [rows, times] : by_rows_) {
    const double r = static_cast<double>(rows), t = times.typical();
    const double weight = static_cast<double>(times.count()) / (t * t);
    w += weight;
    wr += weight * r;
    wt += weight * t;
    wrr += weight * r * r;
    wrt += weight * r * t;
    least = std::min(least, t / r);
  }
  const double spread = w * wrr - wr * wr;
  if (by_rows_.size() < 2 || spread <= 0) return kShared * least;
  return std::clamp((w * wrt - wr * wt) / spread, 0.0, wrt / wrr);
}

double UnitTimes::Seconds(int64_t rows) const {
  const auto after = by_rows_.lower_bound(rows);
  if (after != by_rows_.end() && after->first == rows) return after->second.typical();
  const auto line = [&](const auto& from) {
    const double seconds = from.second.typical();
    const double moved = seconds + static_cast<double>(rows - from.first) * SecondsOfARow();
    return std::max(moved, seconds * static_cast<double>(std::min(rows, from.first)) /
                               static_cast<double>(from.first));
  };
  if (after == by_rows_.end()) return line(*by_rows_.rbegin());
  if (after == by_rows_.begin()) return line(*after);
  const auto before = std::prev(after);
  const double share =
      static_cast<double>(rows - before->first) / static_cast<double>(after->first - before->first);
  return before->second.typical() + share * (after->second.typical() - before->second.typical());
}

// The least number of rows and those that ran lately: the lower convex hull, so that one number
// that is badly served does not hide better ones behind it.
std::vector<UnitTimes::Point> UnitTimes::Tried() const {
  std::vector<Point> hull;
  const auto slope = [](const Point& a, const Point& b) {
    return (b.seconds - a.seconds) / static_cast<double>(b.rows - a.rows);
  };
  for (const auto& [rows, times] : by_rows_) {
    if (!hull.empty() && observations_ - times.last() >= kFresh) continue;
    const Point point = {rows, times.typical(), times.count() >= kEnough};
    while (hull.size() > 1 && slope(hull.end()[-2], hull.back()) >= slope(hull.back(), point)) {
      hull.pop_back();
    }
    hull.push_back(point);
  }
  return hull;
}

int64_t UnitTimes::WorthRows(int64_t most) const {
  const std::vector<Point> tried = Tried();
  for (size_t i = 1; i < tried.size(); ++i) {
    const Point &fewer = tried[i - 1], &more = tried[i];
    const double of_one =
        (more.seconds - fewer.seconds) / static_cast<double>(more.rows - fewer.rows);
    if (of_one <= kPays * fewer.seconds / static_cast<double>(fewer.rows)) continue;
    // One slow forward is no proof: the same again, until there are enough.
    return std::clamp<int64_t>(more.judged ? fewer.rows : more.rows, 1, most);
  }
  return std::clamp<int64_t>(2 * tried.back().rows, 1, most);
}

}  // namespace denoised
