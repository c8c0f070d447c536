// The bounds of every number and text of a request, in one place: requests are checked against
// them, and the command line's flags and help show them. Torch-free.
#ifndef DENOISED_RUNTIME_REQUEST_LIMITS_H_
#define DENOISED_RUNTIME_REQUEST_LIMITS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace denoised {

// Both ends may be taken. Whole numbers have a table of their own: a double does not hold every
// one.
template <class T>
struct FieldLimit {
  std::string_view field;  // as in GenerationRequest, of a message in it "its.field"
  T min, max;
};

// Counts, sizes, the seed; of texts, the bytes.
const std::vector<FieldLimit<int64_t>>& WholeLimits();
const std::vector<FieldLimit<double>>& RealLimits();

// Throw INTERNAL for a field that is not in the table.
const FieldLimit<int64_t>& WholeLimit(std::string_view field);
const FieldLimit<double>& RealLimit(std::string_view field);

// "1 and 4096", every digit written out.
std::string RangeText(const FieldLimit<int64_t>& limit);
std::string RangeText(const FieldLimit<double>& limit);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_REQUEST_LIMITS_H_
