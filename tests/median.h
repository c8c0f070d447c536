// The middle one of some values.
#ifndef DENOISED_TESTS_MEDIAN_H_
#define DENOISED_TESTS_MEDIAN_H_

#include <algorithm>
#include <vector>

namespace denoised {

// Of an even number the upper one of the middle two. There is one at least.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

}  // namespace denoised

#endif  // DENOISED_TESTS_MEDIAN_H_
