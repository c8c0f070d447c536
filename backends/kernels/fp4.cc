#include "backends/kernels/fp4.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace denoised::kernels {
namespace {

constexpr int64_t kScaleGroup = 16;
constexpr int64_t kLanes = 8;  // columns of a product's register tile
constexpr double kLargestE2m1 = 6.0;
constexpr double kLargestE4m3 = 448.0;

int64_t RoundUpToLanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Of a finite x >= 0.
double RoundToE4m3(double x) {
  const float wide = static_cast<float>(std::min(x, kLargestE4m3));
  if (wide < 0x1p-6f) return std::rint(wide * 0x1p9f) * 0x1p-9;  // subnormal: steps of 2^-9
  uint32_t bits;
  std::memcpy(&bits, &wide, 4);
  bits =
      (bits + 0x7ffffu + ((bits >> 20) & 1u)) & ~0xfffffu;  // three bits of mantissa, ties to even
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return rounded;
}

// Magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6.
double RoundToE2m1(double x) {
  const double size = std::abs(x);
  const double step = size >= 4 ? 2.0 : size >= 2 ? 1.0 : 0.5;
  return std::copysign(std::min(std::rint(size / step) * step, kLargestE2m1), x);
}

// The larger, or NaN where one is.
double Larger(double a, double b) { return a > b || std::isnan(a) ? a : b; }

double MostOf(const double* x, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; ++i) most = Larger(most, std::abs(x[i]));
  return most;
}

// c[kRows][8] of a product: a [kRows][depth], b [depth][columns], each element summed over the
// depth in order.
template <int kRows>
void ProductTile(const double* a, int64_t depth, const double* b, int64_t columns, double* c) {
  __m256d sum[kRows][2];
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_pd();
  for (int64_t k = 0; k < depth; ++k, b += columns) {
    const __m256d low = _mm256_loadu_pd(b), high = _mm256_loadu_pd(b + 4);
    for (int r = 0; r < kRows; ++r) {
      const __m256d x = _mm256_set1_pd(a[r * depth + k]);
      sum[r][0] = _mm256_fmadd_pd(x, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_pd(x, high, sum[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_pd(c + r * columns, sum[r][0]);
    _mm256_storeu_pd(c + r * columns + 4, sum[r][1]);
  }
}

// c [rows][columns] = a [rows][depth] b [depth][columns]; columns are whole vectors.
void Product(const double* a, int64_t rows, int64_t depth, const double* b, int64_t columns,
             double* c) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
      ProductTile<4>(a + row * depth, depth, b + column, columns, c + row * columns + column);
    }
    for (; row < rows; ++row) {
      ProductTile<1>(a + row * depth, depth, b + column, columns, c + row * columns + column);
    }
  }
}

std::vector<double> MeanRow(const double* x, int64_t rows, int64_t size) {
  std::vector<double> mean(size, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < size; ++d) mean[d] += x[i * size + d];
  }
  for (double& m : mean) m /= static_cast<double>(rows);
  return mean;
}

// x [rows][size] less `mean`, which may be empty.
std::vector<double> Less(const double* x, int64_t rows, int64_t size,
                         const std::vector<double>& mean) {
  std::vector<double> out(x, x + rows * size);
  if (mean.empty()) return out;
  for (int64_t i = 0; i < rows * size; ++i) out[i] -= mean[i % size];
  return out;
}

// [size][RoundUpToLanes(rows)], zeros behind.
std::vector<double> Transposed(const std::vector<double>& x, int64_t rows, int64_t size) {
  const int64_t columns = RoundUpToLanes(rows);
  std::vector<double> out(size * columns, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < size; ++d) out[d * columns + i] = x[i * size + d];
  }
  return out;
}

void RoundRows(std::vector<double>* x, int64_t rows, int64_t size) {
  for (int64_t i = 0; i < rows; ++i) {
    RoundToNvfp4(x->data() + i * size, size, x->data() + i * size);
  }
}

}  // namespace

void RoundToNvfp4(const double* x, int64_t n, double* out) {
  for (int64_t first = 0; first < n; first += kScaleGroup) {
    const int64_t count = std::min(kScaleGroup, n - first);
    const double most = MostOf(x + first, count);
    if (!std::isfinite(most)) {
      std::fill_n(out + first, count, std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const double scale = RoundToE4m3(most / kLargestE2m1), divisor = scale == 0 ? 1.0 : scale;
    for (int64_t i = first; i < first + count; ++i) out[i] = RoundToE2m1(x[i] / divisor) * scale;
  }
}

Fp4Head::Fp4Head(const double* key, const double* value, int64_t kv_len, int64_t head_size,
                 bool smooth)
    : kv_len_(kv_len),
      head_size_(head_size),
      keys_(RoundUpToLanes(kv_len)),
      columns_(RoundUpToLanes(head_size)),
      smooth_(smooth) {
  std::vector<double> rows = Less(key, kv_len, head_size,
                                  smooth ? MeanRow(key, kv_len, head_size) : std::vector<double>());
  if (smooth) key_ = Transposed(rows, kv_len, head_size);
  RoundRows(&rows, kv_len, head_size);
  key4_ = Transposed(rows, kv_len, head_size);

  // Groups along the keys: rounded as columns, then back.
  std::vector<double> columns =
      Transposed(std::vector<double>(value, value + kv_len * head_size), kv_len, head_size);
  for (int64_t d = 0; d < head_size; ++d) {
    RoundToNvfp4(columns.data() + d * keys_, kv_len, columns.data() + d * keys_);
  }
  value4_.assign(kv_len * columns_, 0.0);
  for (int64_t i = 0; i < kv_len; ++i) {
    for (int64_t d = 0; d < head_size; ++d) value4_[i * columns_ + d] = columns[d * keys_ + i];
  }
}

std::vector<double> Fp4Head::Scores(const double* query, int64_t rows) const {
  const std::vector<double> mean =
      smooth_ ? MeanRow(query, rows, head_size_) : std::vector<double>();
  std::vector<double> query4 = Less(query, rows, head_size_, mean), scores(rows * keys_);
  RoundRows(&query4, rows, head_size_);
  Product(query4.data(), rows, head_size_, key4_.data(), keys_, scores.data());
  if (smooth_) AddMeanScores(mean, rows, scores.data());
  return scores;
}

// What smoothing took off the queries, against keys that are not rounded.
void Fp4Head::AddMeanScores(const std::vector<double>& mean, int64_t rows, double* scores) const {
  std::vector<double> of_mean(keys_);
  Product(mean.data(), 1, head_size_, key_.data(), keys_, of_mean.data());
  for (int64_t i = 0; i < rows * keys_; ++i) scores[i] += of_mean[i % keys_];
}

void Fp4Head::RoundProbabilities(double* p, double top) const {
  const double level = smooth_ ? top / (kLargestE4m3 * kLargestE2m1) : 1.0;
  for (int64_t i = 0; smooth_ && i < kv_len_; ++i) p[i] /= level;
  RoundToNvfp4(p, kv_len_, p);
  for (int64_t i = 0; smooth_ && i < kv_len_; ++i) p[i] *= level;
}

void Fp4Head::Attend(const double* query, int64_t rows, double scale, double* out) const {
  const std::vector<double> scores = Scores(query, rows);
  std::vector<double> p(rows * kv_len_), sums(rows, 0.0), product(rows * columns_);
  for (int64_t i = 0; i < rows; ++i) {
    const double* score = scores.data() + i * keys_;
    double* row = p.data() + i * kv_len_;
    double most = -std::numeric_limits<double>::infinity(), top = 0;
    for (int64_t j = 0; j < kv_len_; ++j) most = Larger(most, row[j] = score[j] * scale);
    for (int64_t j = 0; j < kv_len_; ++j) {
      row[j] = std::exp(row[j] - most);
      sums[i] += row[j];
      top = Larger(top, row[j]);
    }
    RoundProbabilities(row, top);
  }
  Product(p.data(), rows, kv_len_, value4_.data(), columns_, product.data());
  for (int64_t i = 0; i < rows * head_size_; ++i) {
    out[i] = product[i / head_size_ * columns_ + i % head_size_] / sums[i / head_size_];
  }
}

}  // namespace denoised::kernels
