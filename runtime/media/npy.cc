#include <bit>
#include <cstring>

#include "backends/error.h"
#include "runtime/media/video_writer.h"

namespace denoised {
namespace {

static_assert(std::endian::native == std::endian::little, "the header says little-endian");

// Python's repr of a tuple: "(3,)", "(2, 3)".
std::string ShapeTuple(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

void CheckShape(const std::vector<float>& values, const std::vector<int64_t>& shape) {
  uint64_t wanted = 1;
  bool fits = true;
  for (int64_t size : shape) {
    fits =
        fits && size >= 0 && !__builtin_mul_overflow(wanted, static_cast<uint64_t>(size), &wanted);
  }
  if (fits && wanted == values.size()) return;
  throw Error(StatusCode::kInvalidArgument, ".npy: shape " + ShapeTuple(shape) + " does not fit " +
                                                std::to_string(values.size()) + " values");
}

}  // namespace

// Format: numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0.
std::string EncodeNpy(const std::vector<float>& values, const std::vector<int64_t>& shape) {
  constexpr size_t kPrefix = 10, kAlignment = 64;
  CheckShape(values, shape);
  std::string header =
      "{'descr': '<f4', 'fortran_order': False, 'shape': " + ShapeTuple(shape) + ", }";
  const size_t padded = (kPrefix + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  header.resize(padded - kPrefix - 1, ' ');
  header.push_back('\n');
  const uint16_t size = static_cast<uint16_t>(header.size());
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return bytes;
}

}  // namespace denoised
