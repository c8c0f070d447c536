// The times of one kind of unit by its number of rows, and what they say of other numbers.
// Torch-free; belongs to one CostModel.
#ifndef DENOISED_RUNTIME_ENGINE_UNIT_TIMES_H_
#define DENOISED_RUNTIME_ENGINE_UNIT_TIMES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace denoised {

// The last times of one number of rows.
class RecentTimes {
 public:
  // `now` counts observations.
  void Add(double seconds, uint64_t now);
  // The mean of the middle half; of two the smaller, because the first call of a shape is slower
  // than those after it.
  double typical() const { return typical_; }
  int64_t count() const { return static_cast<int64_t>(ring_.size()); }
  uint64_t last() const { return last_; }

 private:
  std::vector<double> ring_;
  size_t next_ = 0;
  double typical_ = 0;
  uint64_t last_ = 0;
};

class UnitTimes {
 public:
  void Add(int64_t rows, double seconds);

  bool empty() const { return by_rows_.empty(); }
  const std::map<int64_t, RecentTimes>& by_rows() const { return by_rows_; }

  // Of a number that ran its own time, between two numbers on the line between them, beyond them on
  // the line through all. Where one number alone ran, a further row is taken to add half. Not
  // empty.
  double Seconds(int64_t rows) const;
  // See CostModel::WorthRows.
  int64_t WorthRows(int64_t most) const;

 private:
  struct Point {
    int64_t rows;
    double seconds;
    bool judged;  // ran often enough
  };
  double SecondsOfARow() const;
  std::vector<Point> Tried() const;
  void ForgetOldest();

  std::map<int64_t, RecentTimes> by_rows_;
  uint64_t observations_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_UNIT_TIMES_H_
