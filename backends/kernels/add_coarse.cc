#include "backends/kernels/add_coarse.h"

#include "backends/kernels/rounding.h"

namespace denoised::kernels {
namespace {

constexpr int64_t kLanes = 8;

// One token of one head.
template <typename T>
void AddRow(const float* coarse, const T* gate, int64_t head_size, T* out) {
  for (int64_t d = 0; d < head_size; d += kLanes) {
    const int64_t left = head_size - d;
    __m256 add = LoadSome(coarse + d, left);
    if (gate != nullptr) add = _mm256_mul_ps(add, LoadSome(gate + d, left));
    StoreSome(out + d, left, _mm256_add_ps(LoadSome(out + d, left), add));
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
