// Gates: products of single queries with the mean keys of chunks, for many queries at once, and the
// steps of row_choice.h's ChooseShare that look at all of them. A lane is a query, so that no step
// but the last few entries of a choice is taken query by query. The same bits on every instruction
// set: a product is a chain of fused multiply-adds in the order of the numbers, and stretched gates
// are StretchRow's but for a zero's sign.
//
// No std containers here: see tile.h.
#ifndef DENOISED_BACKENDS_KERNELS_GATES_H_
#define DENOISED_BACKENDS_KERNELS_GATES_H_

#include <cstdint>

#include "backends/kernels/tile.h"

namespace denoised {
struct DeviceInfo;
}

namespace denoised::kernels {

struct HeadRows;

// Queries at once. Arrays of numbers are [row][kGateLanes].
inline constexpr int kGateLanes = 64;

// Packed means lie in groups of kGroup chunks, the last one filled up.
inline int64_t PaddedChunks(int64_t chunks) { return (chunks + kGroup - 1) / kGroup * kGroup; }

// Each for kGateLanes queries.
struct GateKernels {
  // gates[PaddedChunks(chunks)] of means and queries as PackMeans and PackQueries leave them.
  void (*multiply)(const float* means, const float* queries, int64_t chunks, int64_t size,
                   float* gates);
  // StretchRow of each query's gates, and what it returns.
  void (*stretch)(float* gates, int64_t chunks, double* totals);
  // floors: the highest multiple of 2^-digits from which on a query's values hold `wanted`
  // together, or 0. Sums are float32: where they come near, the floor may be the one beside.
  void (*find_floors)(const float* values, int64_t chunks, const float* wanted, int digits,
                      float* floors);
  // A bit for each query: above[chunk * stride] where its value is `ceilings` or more,
  // within[chunk] where it is less, but `floors` or more. sums: of what is above.
  void (*split)(const float* values, int64_t chunks, const float* floors, const float* ceilings,
                uint64_t* above, int64_t stride, uint64_t* within, double* sums);
};

extern const GateKernels kGatesAvx2, kGatesAvx512;
const GateKernels& GateKernelsOf(const DeviceInfo& cpu);

// packed[PaddedChunks(chunks) * size] of means[chunks][size]; chunks that are none are 0.
void PackMeans(const float* means, int64_t chunks, int64_t size, float* packed);

// packed[head size] of the rows of `count` tokens, 1 .. kGateLanes; lanes past them repeat the
// first.
void PackQueries(const HeadRows& rows, const int32_t* tokens, int count, float* packed);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_GATES_H_
