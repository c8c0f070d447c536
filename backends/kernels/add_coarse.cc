#include "backends/kernels/add_coarse.h"

#include <cstring>

#include "backends/kernels/rounding.h"

namespace denoised::kernels {
namespace {

constexpr int64_t kLanes = 8;

// kLanes from `x` on, of which `left` are there; the others are zeros.
template <typename T>
__m256 Load(const T* x, int64_t left) {
  if (left >= kLanes) return LoadEight(x);
  T some[kLanes] = {};
  std::memcpy(some, x, static_cast<size_t>(left) * sizeof(T));
  return LoadEight(some);
}

template <typename T>
void Store(T* y, int64_t left, __m256 x) {
  if (left >= kLanes) return StoreEight(y, x);
  T some[kLanes];
  StoreEight(some, x);
  std::memcpy(y, some, static_cast<size_t>(left) * sizeof(T));
}

// One token of one head.
template <typename T>
void AddRow(const float* coarse, const T* gate, int64_t head_size, T* out) {
  for (int64_t d = 0; d < head_size; d += kLanes) {
    const int64_t left = head_size - d;
    __m256 add = Load(coarse + d, left);
    if (gate != nullptr) add = _mm256_mul_ps(add, Load(gate + d, left));
    Store(out + d, left, _mm256_add_ps(Load(out + d, left), add));
  }
}

template <typename T>
void AddRows(const AddCoarseCall& call, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(call.out) + begin * call.heads * call.head_size;
  for (int64_t token = begin; token < end; ++token) {
    const float* coarse = call.coarse + call.block_of_token[token] * call.head_size;
    const T* gate = static_cast<const T*>(call.gate);
    if (gate != nullptr) gate += token * call.gate_token_stride;
    for (int64_t head = 0; head < call.heads; ++head, out += call.head_size) {
      AddRow(coarse, gate, call.head_size, out);
      coarse += call.blocks * call.head_size;
      if (gate != nullptr) gate += call.gate_head_stride;
    }
  }
}

}  // namespace

void AddCoarse(const AddCoarseCall& call, int64_t begin, int64_t end) {
  if (call.element == Element::kFloat32) return AddRows<float>(call, begin, end);
  AddRows<uint16_t>(call, begin, end);
}

}  // namespace denoised::kernels
