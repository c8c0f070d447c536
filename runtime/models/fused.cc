#include "runtime/models/fused.h"

#include <ATen/Parallel.h>
#include <immintrin.h>

#include <algorithm>

namespace denoised {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kGrainElements = 32 * 1024;

int64_t RowGrain(int64_t row) { return std::max<int64_t>(1, kGrainElements / row); }

__m256 Load(const float* p) { return _mm256_loadu_ps(p); }
__m256 Load(const c10::BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

void Store(float* p, __m256 x) { _mm256_storeu_ps(p, x); }

// Round to nearest even, NaN stays NaN: as c10::BFloat16 does.
void Store(c10::BFloat16* p, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), is_nan);
  const __m256i packed = _mm256_packus_epi32(words, words);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}

// Rows of [B, S, D] whose companion tensors have one row per batch or one per token.
struct PerRow {
  const float* data;
  int64_t batch_stride;
  int64_t token_stride;

  explicit PerRow(const at::Tensor& t)
      : data(t.const_data_ptr<float>()),
        batch_stride(t.stride(0)),
        token_stride(t.size(1) == 1 ? 0 : t.stride(1)) {}
  const float* Row(int64_t b, int64_t s) const {
    return data + b * batch_stride + s * token_stride;
  }
};

// The kernels take any x with dense rows; `d` elements, the last few one by one.
template <typename T>
void ModulateRow(const float* x, const float* scale, const float* shift, T* out, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    Store(out + i, _mm256_add_ps(_mm256_mul_ps(Load(x + i), Load(scale + i)), Load(shift + i)));
  }
  for (; i < d; ++i) out[i] = static_cast<T>(x[i] * scale[i] + shift[i]);
}

template <typename T>
void ModulateRows(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                  const at::Tensor& out) {
  const PerRow scales(scale), shifts(shift);
  const int64_t tokens = x.size(1), d = x.size(2);
  const float* in = x.const_data_ptr<float>();
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, x.size(0) * tokens, RowGrain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / tokens, s = r % tokens;
      ModulateRow(in + r * d, scales.Row(b, s), shifts.Row(b, s), to + r * d, d);
    }
  });
}

// out = round(h + u * gate) and its widened copy. Without a gate, out = round(h + u).
template <bool kGated, typename T>
void AddRow(const T* h, const T* u, const float* gate, T* out, float* wide, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    __m256 update = Load(u + i);
    if constexpr (kGated) update = _mm256_mul_ps(update, Load(gate + i));
    Store(out + i, _mm256_add_ps(Load(h + i), update));
    if constexpr (!std::is_same_v<T, float>) Store(wide + i, Load(out + i));
  }
  for (; i < d; ++i) {
    float update = static_cast<float>(u[i]);
    if constexpr (kGated) update *= gate[i];
    out[i] = static_cast<T>(static_cast<float>(h[i]) + update);
    if constexpr (!std::is_same_v<T, float>) wide[i] = static_cast<float>(out[i]);
  }
}

template <bool kGated, typename T>
void AddRows(const at::Tensor& h, const at::Tensor& u, const at::Tensor& gate, const Hidden& out) {
  const PerRow gates(gate);
  const int64_t tokens = h.size(1), d = h.size(2);
  const T* from = h.const_data_ptr<T>();
  const T* update = u.const_data_ptr<T>();
  T* to = out.value.mutable_data_ptr<T>();
  float* wide = out.wide.mutable_data_ptr<float>();
  at::parallel_for(0, h.size(0) * tokens, RowGrain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* g = kGated ? gates.Row(r / tokens, r % tokens) : nullptr;
      AddRow<kGated>(from + r * d, update + r * d, g, to + r * d, wide + r * d, d);
    }
  });
}

template <bool kGated>
Hidden AddOnCpu(const Hidden& hidden, const at::Tensor& update, const at::Tensor& gate) {
  Hidden out;
  out.value = at::empty(hidden.value.sizes(), hidden.value.options());
  if (hidden.value.scalar_type() == at::kFloat) {
    out.wide = out.value;
    AddRows<kGated, float>(hidden.value, update, gate, out);
  } else {
    out.wide = at::empty(hidden.value.sizes(), hidden.value.options().dtype(at::kFloat));
    AddRows<kGated, c10::BFloat16>(hidden.value, update, gate, out);
  }
  return out;
}

// Four pairs at a time: x = [a0 b0 a1 b1 ..] becomes [a c - b s, a s + b c] per pair. Float
// multiplication and addition commute bit for bit, so the odd lanes may add in either order.
template <typename T>
void RotateRow(const T* x, const float* cos, const float* sin, T* out, int64_t d) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    const __m256 v = Load(x + i);
    const __m256 swapped = _mm256_permute_ps(v, 0xB1);
    const __m256 c =
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cos + i / 2)), twice);
    const __m256 s =
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sin + i / 2)), twice);
    Store(out + i, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(swapped, s)));
  }
  for (; i < d; i += 2) {
    const float a = static_cast<float>(x[i]), b = static_cast<float>(x[i + 1]);
    const float c = cos[i / 2], s = sin[i / 2];
    out[i] = static_cast<T>(a * c - b * s);
    out[i + 1] = static_cast<T>(a * s + b * c);
  }
}

template <typename T>
void RotateRows(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                const at::Tensor& out) {
  const int64_t tokens = x.size(1), heads = x.size(2), d = x.size(3);
  const T* from = x.const_data_ptr<T>();
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, x.size(0) * tokens, RowGrain(heads * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t table = (r % tokens) * (d / 2);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = (r * heads + h) * d;
        RotateRow(from + at, c + table, s + table, to + at, d);
      }
    }
  });
}

bool HasKernel(const at::Tensor& x, at::ScalarType dtype) {
  return x.is_cpu() && (dtype == at::kFloat || dtype == at::kBFloat16);
}

}  // namespace

at::Tensor Modulate(const at::Tensor& x, const at::Tensor& scale_plus_one, const at::Tensor& shift,
                    at::ScalarType dtype) {
  if (!HasKernel(x, dtype)) return (x * scale_plus_one + shift).to(dtype);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options().dtype(dtype));
  if (dtype == at::kFloat) {
    ModulateRows<float>(in, scale_plus_one, shift, out);
  } else {
    ModulateRows<c10::BFloat16>(in, scale_plus_one, shift, out);
  }
  return out;
}

Hidden AddGated(const Hidden& hidden, const at::Tensor& update, const at::Tensor& gate) {
  const at::ScalarType dtype = hidden.value.scalar_type();
  if (HasKernel(update, dtype)) return AddOnCpu<true>(hidden, update.contiguous(), gate);
  return Hidden::From((hidden.wide + update.to(at::kFloat) * gate).to(dtype));
}

Hidden Add(const Hidden& hidden, const at::Tensor& update) {
  const at::ScalarType dtype = hidden.value.scalar_type();
  if (HasKernel(update, dtype)) return AddOnCpu<false>(hidden, update.contiguous(), hidden.wide);
  return Hidden::From(hidden.value + update);
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (!HasKernel(x, x.scalar_type())) {
    const at::Tensor a = x.slice(-1, 0, c10::nullopt, 2), b = x.slice(-1, 1, c10::nullopt, 2);
    const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
    const at::Tensor pairs = at::stack({a * c - b * s, a * s + b * c}, -1);
    return pairs.flatten(-2).to(x.scalar_type());
  }
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  if (x.scalar_type() == at::kFloat) {
    RotateRows<float>(in, cos, sin, out);
  } else {
    RotateRows<c10::BFloat16>(in, cos, sin, out);
  }
  return out;
}

}  // namespace denoised
