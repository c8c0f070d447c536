#include "runtime/models/fused.h"

#include <immintrin.h>

#include "backends/intra_op.h"
#include "runtime/models/row_kernels_cuda.h"
#include "runtime/models/rows.h"

namespace denoised {
namespace {

constexpr int64_t kLanes = 8;

// The kernels take any x with dense rows; `d` elements, the last few one by one.
template <typename T>
void ModulateRow(const float* x, const float* scale, const float* shift, T* out, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    Store8(out + i, _mm256_add_ps(_mm256_mul_ps(Load8(x + i), Load8(scale + i)), Load8(shift + i)));
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
  ParallelFor(x.size(0) * tokens, RowGrain(d), [&](int64_t begin, int64_t end) {
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
    __m256 update = Load8(u + i);
    if constexpr (kGated) update = _mm256_mul_ps(update, Load8(gate + i));
    Store8(out + i, _mm256_add_ps(Load8(h + i), update));
    if constexpr (!std::is_same_v<T, float>) Store8(wide + i, Load8(out + i));
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
  ParallelFor(h.size(0) * tokens, RowGrain(d), [&](int64_t begin, int64_t end) {
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

template <typename T>
void RotateRows(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                const at::Tensor& out) {
  const int64_t tokens = x.size(1), heads = x.size(2), d = x.size(3);
  const T* from = x.const_data_ptr<T>();
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  T* to = out.mutable_data_ptr<T>();
  ParallelFor(x.size(0) * tokens, RowGrain(heads * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t table = (r % tokens) * (d / 2);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = (r * heads + h) * d;
        RotatePairs(from + at, c + table, s + table, to + at, d);
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
  if (update.is_cuda()) return AddGatedCuda(hidden, update, gate);
  const at::ScalarType dtype = hidden.value.scalar_type();
  if (HasKernel(update, dtype)) return AddOnCpu<true>(hidden, update.contiguous(), gate);
  return Hidden::From((hidden.wide + update.to(at::kFloat) * gate).to(dtype));
}

Hidden Add(const Hidden& hidden, const at::Tensor& update) {
  if (update.is_cuda()) return AddGatedCuda(hidden, update, {});
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
