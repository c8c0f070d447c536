#include "runtime/models/row_kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "backends/intra_op.h"
#include "backends/kernels/activations.h"
#include "runtime/models/row_kernels_cuda.h"
#include "runtime/models/rows.h"

namespace denoised {
namespace {

// ---- sums --------------------------------------------------------------------------------------

float Sum(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Of each of kRows rows of d: the sum of eight(row, v) over its numbers, eight lanes at a time, the
// last few by one(row, v). A row's additions wait for each other: other rows' run meanwhile.
template <int kRows, typename T, typename F, typename G>
std::array<float, kRows> SumsOver(const T* x, int64_t d, const F& eight, const G& one) {
  __m256 a[kRows], b[kRows];
  for (int r = 0; r < kRows; ++r) a[r] = b[r] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    for (int r = 0; r < kRows; ++r) {
      a[r] = _mm256_add_ps(a[r], eight(r, Load8(x + r * d + i)));
      b[r] = _mm256_add_ps(b[r], eight(r, Load8(x + r * d + i + 8)));
    }
  }
  for (; i + 8 <= d; i += 8) {
    for (int r = 0; r < kRows; ++r) a[r] = _mm256_add_ps(a[r], eight(r, Load8(x + r * d + i)));
  }
  std::array<float, kRows> sums;
  for (int r = 0; r < kRows; ++r) {
    sums[r] = Sum(_mm256_add_ps(a[r], b[r]));
    for (int64_t j = i; j < d; ++j) sums[r] += one(r, static_cast<float>(x[r * d + j]));
  }
  return sums;
}

template <typename T>
float SumOfSquares(const T* x, int64_t d) {
  return SumsOver<1>(
      x, d, [](int, __m256 v) { return _mm256_mul_ps(v, v); },
      [](int, float v) { return v * v; })[0];
}

// ---- rows --------------------------------------------------------------------------------------

// A row less its mean and over its deviation, scaled and shifted.
struct Normalisation {
  float mean, inverse;
  template <typename T>
  void Apply(const float* x, const float* scale, const float* shift, T* out, int64_t d) const {
    const __m256 mean8 = _mm256_set1_ps(mean), inverse8 = _mm256_set1_ps(inverse);
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) {
      const __m256 n = _mm256_mul_ps(_mm256_sub_ps(Load8(x + i), mean8), inverse8);
      Store8(out + i, _mm256_add_ps(_mm256_mul_ps(n, Load8(scale + i)), Load8(shift + i)));
    }
    for (; i < d; ++i) out[i] = static_cast<T>((x[i] - mean) * inverse * scale[i] + shift[i]);
  }
};

// Of kRows rows of d.
template <int kRows>
std::array<Normalisation, kRows> NormalisationsOf(const float* x, int64_t d, double eps) {
  std::array<Normalisation, kRows> norms;
  const auto sums = SumsOver<kRows>(
      x, d, [](int, __m256 v) { return v; }, [](int, float v) { return v; });
  __m256 mean8[kRows];
  for (int r = 0; r < kRows; ++r) {
    norms[r].mean = sums[r] / static_cast<float>(d);
    mean8[r] = _mm256_set1_ps(norms[r].mean);
  }
  const auto squares = SumsOver<kRows>(
      x, d,
      [&](int r, __m256 v) {
        const __m256 off = _mm256_sub_ps(v, mean8[r]);
        return _mm256_mul_ps(off, off);
      },
      [&](int r, float v) { return (v - norms[r].mean) * (v - norms[r].mean); });
  for (int r = 0; r < kRows; ++r) {
    norms[r].inverse =
        1.0f / std::sqrt(squares[r] / static_cast<float>(d) + static_cast<float>(eps));
  }
  return norms;
}

template <typename T>
void NormRmsRow(const T* x, const T* weight, double eps, T* out, int64_t d) {
  const float inverse =
      1.0f / std::sqrt(SumOfSquares(x, d) / static_cast<float>(d) + static_cast<float>(eps));
  const __m256 inverse8 = _mm256_set1_ps(inverse);
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    Store8(out + i, _mm256_mul_ps(_mm256_mul_ps(Load8(x + i), inverse8), Load8(weight + i)));
  }
  for (; i < d; ++i) {
    out[i] = static_cast<T>(static_cast<float>(x[i]) * inverse * static_cast<float>(weight[i]));
  }
}

// out = table + time, and 1 more in a part that is a scale. What is not more is -0: with it every
// sum stays what it is, zeros too.
template <typename T>
void ModulationRow(const float* table, const T* time, bool is_scale, float* out, int64_t d) {
  const float more = is_scale ? 1.0f : -0.0f;
  const __m256 more8 = _mm256_set1_ps(more);
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    Store8(out + i, _mm256_add_ps(_mm256_add_ps(Load8(table + i), Load8(time + i)), more8));
  }
  for (; i < d; ++i) out[i] = table[i] + static_cast<float>(time[i]) + more;
}

// A token of H heads, rotated in place.
template <typename T>
void RotateToken(const float* cos, const float* sin, int64_t heads, int64_t head_size, T* x) {
  for (int64_t h = 0; h < heads; ++h, x += head_size) RotatePairs(x, cos, sin, x, head_size);
}

template <typename T>
void SiluRow(const T* x, T* out, int64_t d) {
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) Store8(out + i, kernels::Silu8(Load8(x + i)));
  if (i == d) return;
  T last[8] = {};
  std::copy(x + i, x + d, last);
  Store8(last, kernels::Silu8(Load8(last)));
  std::copy(last, last + (d - i), out + i);
}

// ---- tensors -----------------------------------------------------------------------------------

template <typename F>
void ForRows(int64_t rows, int64_t width, const F& run) {
  ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) run(r);
  });
}

// Runs f with the tensor's element type.
template <typename F>
void ForDtype(at::ScalarType dtype, const F& f) {
  if (dtype == at::kFloat) return f(float{});
  TORCH_CHECK(dtype == at::kBFloat16, "row kernels take float32 and bfloat16");
  f(c10::BFloat16{});
}

}  // namespace

LinearInput NormModulate(const at::Tensor& x, const at::Tensor& scale_plus_one,
                         const at::Tensor& shift, double eps, at::ScalarType dtype,
                         const at::Tensor& index) {
  if (x.is_cuda()) return NormModulateCuda(x, scale_plus_one, shift, eps, dtype);
  kernels::RowReader rows;
  ForDtype(dtype, [&]<typename T>(T) {
    rows = [in = x.contiguous(), scale_plus_one, shift, index, eps, tokens = x.size(1),
            d = x.size(2)](int64_t first, int64_t count, void* out) {
      const PerRow scales(scale_plus_one, index), shifts(shift, index);
      const float* from = in.const_data_ptr<float>();
      T* to = static_cast<T*>(out);
      const auto apply = [&](const Normalisation& norm, int64_t r) {
        const int64_t b = r / tokens, s = r % tokens;
        norm.Apply(from + r * d, scales.Row(b, s), shifts.Row(b, s), to + (r - first) * d, d);
      };
      constexpr int kTogether = 4;
      int64_t r = first;
      for (; r + kTogether <= first + count; r += kTogether) {
        const auto norms = NormalisationsOf<kTogether>(from + r * d, d, eps);
        for (int i = 0; i < kTogether; ++i) apply(norms[i], r + i);
      }
      for (; r < first + count; ++r) apply(NormalisationsOf<1>(from + r * d, d, eps)[0], r);
    };
  });
  return {x.sizes(), dtype, std::move(rows)};
}

at::Tensor NormRms(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_cuda()) return NormRmsCuda(x, weight, eps);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const int64_t d = x.size(-1);
  ForDtype(x.scalar_type(), [&]<typename T>(T) {
    const T* from = in.const_data_ptr<T>();
    const T* gain = weight.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    ForRows(in.numel() / d, d,
            [&](int64_t r) { NormRmsRow(from + r * d, gain, eps, to + r * d, d); });
  });
  return out;
}

void NormRmsRows(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t first,
                 int64_t count) {
  const int64_t d = x.size(-1);
  ForDtype(x.scalar_type(), [&]<typename T>(T) {
    T* row = x.mutable_data_ptr<T>() + first * d;
    const T* gain = weight.const_data_ptr<T>();
    for (int64_t r = 0; r < count; ++r, row += d) NormRmsRow(row, gain, eps, row, d);
  });
}

void NormRmsRotateRows(const at::Tensor& x, const at::Tensor& weight, double eps,
                       const RopeTables& rope, int64_t heads, int64_t first, int64_t count) {
  const int64_t tokens = x.size(1), d = x.size(2), head_size = d / heads;
  const float* const cos = rope.cos.const_data_ptr<float>();
  const float* const sin = rope.sin.const_data_ptr<float>();
  ForDtype(x.scalar_type(), [&]<typename T>(T) {
    const T* gain = weight.const_data_ptr<T>();
    T* row = x.mutable_data_ptr<T>() + first * d;
    for (int64_t r = first; r < first + count; ++r, row += d) {
      const int64_t table = r % tokens * (head_size / 2);
      NormRmsRow(row, gain, eps, row, d);
      RotateToken(cos + table, sin + table, heads, head_size, row);
    }
  });
}

at::Tensor Modulation(const at::Tensor& table, const at::Tensor& time,
                      std::initializer_list<int64_t> scales) {
  const at::Tensor in = time.contiguous();
  const int64_t parts = table.size(1), d = table.size(2), each = in.size(2);
  at::Tensor out = at::empty({in.size(0), in.size(1), parts, d}, in.options().dtype(at::kFloat));
  const float* from_table = table.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  ForDtype(in.scalar_type(), [&]<typename T>(T) {
    const T* from_time = in.const_data_ptr<T>();
    ForRows(out.numel() / d, d, [&](int64_t r) {
      const int64_t part = r % parts;
      const float* a = from_table + part * d;
      const T* b = from_time + (each == 1 ? r / parts : r) * d;
      ModulationRow(a, b, std::ranges::find(scales, part) != scales.end(), to + r * d, d);
    });
  });
  return out;
}

at::Tensor Silu(const at::Tensor& x) {
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const int64_t d = x.size(-1);
  ForDtype(x.scalar_type(), [&]<typename T>(T) {
    const T* from = in.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    ForRows(in.numel() / d, d, [&](int64_t r) { SiluRow(from + r * d, to + r * d, d); });
  });
  return out;
}

std::vector<float> TimeFrequencies(int64_t count) {
  std::vector<float> frequencies(count);
  for (int64_t i = 0; i < count; ++i) {
    const float exponent = -static_cast<float>(std::log(10000.0)) * static_cast<float>(i);
    frequencies[i] = static_cast<float>(std::exp(double{exponent / static_cast<float>(count)}));
  }
  return frequencies;
}

at::Tensor TimeFeatures(const std::vector<float>& times, const std::vector<float>& frequencies) {
  const int64_t rows = std::ssize(times), count = std::ssize(frequencies);
  at::Tensor out = at::empty({rows, 2 * count}, at::kFloat);
  float* to = out.mutable_data_ptr<float>();
  ForRows(rows, 2 * count, [&](int64_t r) {
    for (int64_t i = 0; i < count; ++i) {
      const float angle = times[r] * frequencies[i];
      to[r * 2 * count + i] = std::cos(angle);
      to[r * 2 * count + count + i] = std::sin(angle);
    }
  });
  return out;
}

}  // namespace denoised
