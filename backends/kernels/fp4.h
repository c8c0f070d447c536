// Attention as a card with NVFP4 would compute it, in float64 and slow: operands and probabilities
// rounded to 4 bits, sums exact to float64.
//
// Own loops, each sum in one order, so that a row's bits depend on its head alone: not on threads,
// batch or a library's choice of kernel. What is not finite makes its group of 16 NaN, and what is
// computed from it. Torch-free.
#ifndef DENOISED_BACKENDS_KERNELS_FP4_H_
#define DENOISED_BACKENDS_KERNELS_FP4_H_

#include <cstdint>
#include <vector>

namespace denoised::kernels {

// SageAttention3 smooths queries by this many.
inline constexpr int64_t kFp4QueryBlock = 128;

// NVFP4 and back, out[n]: groups of 16 (the last may be short) share a scale, absmax / 6 rounded to
// E4M3; elements are E2M1. Rounds to nearest, ties to even; saturates. May be in place.
void RoundToNvfp4(const double* x, int64_t n, double* out);

// The operands of one head, made once. Immutable afterwards; shared by threads.
class Fp4Head {
 public:
  // key and value [kv_len][head_size]. `smooth` as SageAttention3: keys less their mean, queries
  // less their block's, probabilities of a row stretched to the widest range that a group can have.
  Fp4Head(const double* key, const double* value, int64_t kv_len, int64_t head_size, bool smooth);

  // One block of queries, query and out [rows][head_size].
  void Attend(const double* query, int64_t rows, double scale, double* out) const;

 private:
  std::vector<double> Scores(const double* query, int64_t rows) const;
  void AddMeanScores(const std::vector<double>& mean, int64_t rows, double* scores) const;
  void RoundProbabilities(double* p, double top) const;

  int64_t kv_len_, head_size_;
  int64_t keys_, columns_;  // both rounded up to whole vectors
  bool smooth_;
  std::vector<double> key_;     // [head_size][keys], before rounding; where smoothed
  std::vector<double> key4_;    // the same in FP4
  std::vector<double> value4_;  // [kv_len][columns], groups along the keys that a product sums over
};

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_FP4_H_
