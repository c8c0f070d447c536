// The small dense parts of mask making: means of blocks and products of the means. Own loops and
// not a library's matrix product, so that the bits of a mask depend on nothing but its own head.
#ifndef DENOISED_BACKENDS_KERNELS_POOL_H_
#define DENOISED_BACKENDS_KERNELS_POOL_H_

#include <cstdint>
#include <vector>

#include "backends/kernels/block_sparse.h"

namespace denoised::kernels {

// Rows of one head, as float32: data is at [batch, head] of a view, `stride` elements a token.
struct HeadRows {
  const void* data = nullptr;
  int64_t stride = 0;
  Element element = Element::kFloat32;
  int64_t head_size = 0;
};

HeadRows HeadOf(const View& view, Element element, int64_t head_size, int64_t batch, int64_t head);

// One row as float32 into out[head_size].
void LoadRow(const HeadRows& rows, int64_t token, float* out);

// Has a row fetched that will soon be wanted.
void PrefetchRow(const HeadRows& rows, int64_t token);

// Mean of `count` >= 1 tokens' rows into mean[head_size], accumulated in float32 in their order.
void BlockMean(const HeadRows& rows, const int32_t* tokens, int64_t count, float* mean);

// Means of the blocks of an order: [blocks][head_size] float32, accumulated in float32 in order.
std::vector<float> BlockMeans(const HeadRows& rows, const std::vector<int32_t>& order,
                              const std::vector<int32_t>& lengths);

// a [n][k] times b [m][k] transposed: out [n][m], each the Dot of its rows.
void Products(const float* a, int64_t n, const float* b, int64_t m, int64_t k, float* out);
std::vector<float> Products(const std::vector<float>& a, const std::vector<float>& b, int64_t k);

// weights [n][m] times values [m][k]: [n][k].
std::vector<float> WeightedSums(const std::vector<float>& weights, const std::vector<float>& values,
                                int64_t m, int64_t k);

// In place, rows of `columns`; float32. No weight is a denormal number, with which products are
// slow on some CPUs: what is below 2^-126 is 0.
void SoftmaxRows(std::vector<float>* rows, int64_t columns);

float Dot(const float* a, const float* b, int64_t k);

// To the nearest bfloat16, ties to even.
float RoundToBFloat16(float x);
void RoundAllToBFloat16(std::vector<float>* values);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_POOL_H_
