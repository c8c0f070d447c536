// Convolutions over frames whose channels lie together, as implicit matrix products on the packed
// panels of gemm.h: the rows of x are patches, which are packed a tile at a time straight from the
// frames and never written out whole.
//
// Torch-free. K is taken in the order (frame, row, column, channel) of the taps, in pieces that are
// summed from zero and added in order; taps that fall outside of the frames are left out. So the
// bits of an output position depend on its own patch, the weights and the instruction set, never on
// how many frames or rows a call computes, nor on threads.
#ifndef DENOISED_BACKENDS_KERNELS_CONV_H_
#define DENOISED_BACKENDS_KERNELS_CONV_H_

#include <cstdint>

#include "backends/kernels/gemm.h"

namespace denoised::kernels {

// Of a kernel. At most kMostColumnTaps columns.
struct Taps {
  int64_t frames = 1, rows = 1, columns = 1;
  int64_t count() const { return frames * rows * columns; }
};
inline constexpr int64_t kMostColumnTaps = 5;

// Channels of a tap in the weight matrix: [N][taps][these], those after the first `channels` zero.
// Where units are pairs a tap must hold whole ones.
int64_t TapChannels(int64_t channels, GemmIsa isa);

// Frames are rows by columns of positions, `step`s in elements of the weights' type. N channels
// out.
struct ConvolutionCall {
  Taps taps;
  int64_t channels = 0;
  // Output frame t sees the inputs t to t + taps.frames - 1. Null: a frame of zeros. Positions of a
  // frame follow each other, `in_step` apart.
  const void* const* in = nullptr;
  int64_t in_rows = 0, in_columns = 0, in_step = 0;
  // Output (row, column) sees the rows from row + first_row on and the columns likewise; what lies
  // outside of the frame is zero.
  int64_t first_row = 0, first_column = 0;
  int64_t frames = 0, rows = 0, columns = 0;  // of the output
  int64_t origin_row = 0;  // which row of the whole frame the output's first is (conv_winograd.h)

  // What becomes of the sums: + bias + added, stored in `out`; then over the channels
  // silu(x / |x| sqrt(N) gamma), stored in `normed`. Null: not done, not stored.
  const float* bias = nullptr;         // [N], rounded up to whole panels
  const void* const* added = nullptr;  // a frame each, laid out as `out`, which it may be
  void* const* out = nullptr;          // a frame each
  int64_t out_row_step = 0, out_step = 0;
  const float* gamma = nullptr;  // [N], rounded up to whole panels
  bool silu = false;
  void* const* normed = nullptr;  // a frame each, laid out as `out`
};

// Asks between pieces of work whether to stop (backends/stop_point.h): then the result is half
// written.
void Convolve(const ConvolutionCall& call, const WeightPanels& weight,
              const RunWorkers& run_workers);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_CONV_H_
