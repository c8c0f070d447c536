#include "backends/kernels/conv_winograd.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <vector>

#include "backends/kernels/conv_common.h"
#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/thread_buffer.h"

namespace denoised::kernels {
namespace {

// A patch has 4x4 positions, of which each result sees 3x3; its 2x2 results are two apart.
constexpr int64_t kPatch = 4, kResults = 2;
// Patches of a task: their numbers and sums stay in a core's cache while all weights stream past.
constexpr int64_t kMostTaskPatches = 24, kLeastTaskPatches = 12;
constexpr int64_t kWantedTasks = 8;
// Units of one chain of sums.
constexpr int64_t kMostChainUnits = 288;
// All points of a weight: what cores share and each task reads.
constexpr int64_t kMostWeightBytes = int64_t{8} << 20;

constexpr int64_t kLanes = 8;

// The four numbers that four of a line become: B^T of the paper.
void TransformLine(const __m256* in, int64_t step, __m256* out, int64_t out_step) {
  const __m256 a = in[0], b = in[step], c = in[2 * step], d = in[3 * step];
  out[0] = _mm256_sub_ps(a, c);
  out[out_step] = _mm256_add_ps(b, c);
  out[2 * out_step] = _mm256_sub_ps(c, b);
  out[3 * out_step] = _mm256_sub_ps(b, d);
}

// The two results that four products of a line become: A^T of the paper.
void ResultsOfLine(const __m256* in, int64_t step, __m256* out, int64_t out_step) {
  const __m256 a = in[0], b = in[step], c = in[2 * step], d = in[3 * step];
  out[0] = _mm256_add_ps(_mm256_add_ps(a, b), c);
  out[out_step] = _mm256_sub_ps(_mm256_sub_ps(b, c), d);
}

// The four numbers that three taps of a line become: G of the paper.
void TransformTaps(const double* in, int64_t step, double* out, int64_t out_step) {
  const double a = in[0], b = in[step], c = in[2 * step];
  out[0] = a;
  out[out_step] = (a + b + c) / 2;
  out[2 * out_step] = (a - b + c) / 2;
  out[3 * out_step] = c;
}

// A weight's numbers at all points: G g G^T of the paper, g the 3x3 taps, `step` apart.
std::array<double, kWinogradPoints> WeightAtPoints(const float* taps, int64_t step) {
  double g[9], rows[kPatch * 3];
  std::array<double, kWinogradPoints> points;
  for (int64_t i = 0; i < 9; ++i) g[i] = taps[i * step];
  for (int64_t s = 0; s < 3; ++s) TransformTaps(g + s, 3, rows + s, 3);
  for (int64_t i = 0; i < kPatch; ++i) {
    TransformTaps(rows + 3 * i, 1, points.data() + kPatch * i, 1);
  }
  return points;
}

class Convolver {
 public:
  Convolver(const ConvolutionCall& call, const WinogradWeight& weight)
      : call_(call),
        weight_(weight),
        run_(GemmKernelOf(weight.point(0)).run),
        finisher_(call, weight.point(0).n()),
        channels_(call.channels),
        panels_(weight.point(0).panels()),
        sum_stride_(panels_ * kPanelColumns),
        above_(call.origin_row & (kResults - 1)),
        patches_a_row_(CeilDiv(call.columns, kResults)),
        patches_a_frame_(CeilDiv(above_ + call.rows, kResults) * patches_a_row_),
        zeros_(static_cast<size_t>(call.channels + kLanes)) {}

  void Run(const RunWorkers& run_workers) {
    const int64_t patches = patches_a_frame_ * call_.frames;
    const int64_t task_patches =
        patches >= kWantedTasks * kMostTaskPatches ? kMostTaskPatches : kLeastTaskPatches;
    RunParts(
        call_.frames, patches_a_frame_, task_patches, run_workers,
        [&] { return Scratch(CeilDiv(task_patches, kTileRows), channels_, sum_stride_); },
        [&](int64_t frame, int64_t first, int64_t count, const Scratch& scratch) {
          RunTask(frame, first, count, scratch);
        });
  }

 private:
  // A thread's own, for `tiles` of kTileRows patches.
  struct Scratch {
    Scratch(int64_t tiles, int64_t channels, int64_t sum_stride)
        : tiles(tiles),
          numbers(kWinogradPoints * tiles * channels * kTileRows),
          sums(kWinogradPoints * tiles * kTileRows * sum_stride),
          results(kResults * kResults * sum_stride) {}
    const int64_t tiles;
    const ThreadBuffer<float> numbers;  // [points][tiles][channels][kTileRows]
    const ThreadBuffer<float> sums;     // [points][tiles][kTileRows][sum_stride]
    const ThreadBuffer<float> results;  // [2 x 2][sum_stride] of one patch
  };

  // Of a patch, its first result in the call's rows and columns: the row may be above them.
  struct Place {
    int64_t row, column;
  };
  Place PlaceOf(int64_t patch) const {
    return {patch / patches_a_row_ * kResults - above_, patch % patches_a_row_ * kResults};
  }

  void RunTask(int64_t frame, int64_t first, int64_t count, const Scratch& scratch) const {
    bool begun = false;
    for (int64_t f = 0; f < call_.taps.frames; ++f) {
      const float* const in = static_cast<const float*>(call_.in[frame + f]);
      if (in == nullptr) continue;
      for (int64_t i = 0; i < count; i += 4) Transform(in, first, count, i, scratch);
      Multiply(f, count, !begun, scratch);
      begun = true;
    }
    if (!begun) {
      std::fill_n(scratch.sums.get(), kWinogradPoints * scratch.tiles * kTileRows * sum_stride_, 0);
    }
    for (int64_t i = 0; i < count; ++i) Finish(frame, first + i, i, scratch);
  }

  // Four patches from `begin` of the task on; what lies outside of the frame, and of the task, is
  // zero.
  void Transform(const float* in, int64_t first, int64_t count, int64_t begin,
                 const Scratch& scratch) const {
    const float* at[4][kWinogradPoints];
    for (int64_t i = 0; i < 4; ++i) FindPatch(in, first + begin + i, begin + i < count, at[i]);
    const int64_t tile = begin / kTileRows, row = begin % kTileRows;
    for (int64_t c = 0; c < channels_; c += kLanes) {
      const int64_t left = std::min(channels_ - c, kLanes);
      alignas(32) float numbers[kWinogradPoints][4][kLanes];
      for (int64_t i = 0; i < 4; ++i) TransformPatch(at[i], c, left, &numbers[0][i][0]);
      for (int64_t point = 0; point < kWinogradPoints; ++point) {
        float* const out = scratch.numbers.get() +
                           ((point * scratch.tiles + tile) * channels_ + c) * kTileRows + row;
        StoreColumns(numbers[point], left, out);
      }
    }
  }

  void FindPatch(const float* in, int64_t patch, bool there, const float** at) const {
    const Place place = PlaceOf(patch);
    for (int64_t i = 0; i < kWinogradPoints; ++i) {
      const int64_t row = place.row + call_.first_row + i / kPatch;
      const int64_t column = place.column + call_.first_column + i % kPatch;
      const bool inside =
          there && row >= 0 && row < call_.in_rows && column >= 0 && column < call_.in_columns;
      at[i] = inside ? in + (row * call_.in_columns + column) * call_.in_step : zeros_.data();
    }
  }

  // Channels from c on of one patch; a point's numbers are 4 * kLanes apart.
  static void TransformPatch(const float* const* at, int64_t c, int64_t left, float* out) {
    __m256 patch[kWinogradPoints], rows[kWinogradPoints], points[kWinogradPoints];
    for (int64_t i = 0; i < kWinogradPoints; ++i) patch[i] = LoadSome(at[i] + c, left);
    for (int64_t j = 0; j < kPatch; ++j) TransformLine(patch + j, kPatch, rows + j, kPatch);
    for (int64_t i = 0; i < kPatch; ++i) {
      TransformLine(rows + kPatch * i, 1, points + kPatch * i, 1);
    }
    for (int64_t i = 0; i < kWinogradPoints; ++i) _mm256_store_ps(out + i * 4 * kLanes, points[i]);
  }

  // Channels of four patches to rows of the register tile.
  static void StoreColumns(const float (&numbers)[4][kLanes], int64_t channels, float* out) {
    for (int64_t c = 0; c < channels; c += 4) {
      __m128 x[4];
      for (int i = 0; i < 4; ++i) x[i] = _mm_load_ps(numbers[i] + c);
      _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
      for (int64_t i = 0; i < std::min<int64_t>(4, channels - c); ++i) {
        _mm_storeu_ps(out + (c + i) * kTileRows, x[i]);
      }
    }
  }

  void Multiply(int64_t tap_frame, int64_t count, bool first, const Scratch& scratch) const {
    const int64_t parts = CeilDiv(channels_, kMostChainUnits), part = CeilDiv(channels_, parts);
    const int64_t tiles = CeilDiv(count, kTileRows);
    for (int64_t point = 0; point < kWinogradPoints; ++point) {
      const WeightPanels& weight = weight_.point(point);
      const int64_t step = weight.unit_bytes() / tiles;  // each tile fetches its part of the next
      for (int64_t unit = 0; unit < channels_; unit += part) {
        const int64_t units = std::min(part, channels_ - unit);
        const int64_t at = tap_frame * channels_ + unit;
        for (int64_t p = 0; p < panels_; ++p) {
          const char* const soon = weight.Panel(p + 1 < panels_ ? p + 1 : 0, at);
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t place = point * scratch.tiles + t;
            GemmTile tile{};
            tile.rows = reinterpret_cast<const uint32_t*>(scratch.numbers.get() +
                                                          (place * channels_ + unit) * kTileRows);
            tile.panel = weight.Panel(p, at);
            tile.units = units;
            tile.height = static_cast<int>(
                CeilDiv(std::min<int64_t>(kTileRows, count - t * kTileRows), 4) * 4);
            tile.first = first && unit == 0;
            tile.sums = scratch.sums.get() + place * kTileRows * sum_stride_ + p * kPanelColumns;
            tile.sum_stride = sum_stride_;
            tile.runs = 1;
            tile.row_stride = kTileRows;
            tile.soon = soon + t * step * units;
            tile.soon_step = step;
            run_(tile);
          }
        }
      }
    }
  }

  void Finish(int64_t frame, int64_t patch, int64_t i, const Scratch& scratch) const {
    const int64_t point_step = scratch.tiles * kTileRows * sum_stride_;
    for (int64_t n = 0; n < sum_stride_; n += kLanes) {
      const float* const sums = scratch.sums.get() + i * sum_stride_ + n;
      __m256 points[kWinogradPoints], rows[kResults * kPatch], results[kResults * kResults];
      for (int64_t p = 0; p < kWinogradPoints; ++p) {
        points[p] = _mm256_loadu_ps(sums + p * point_step);
      }
      for (int64_t j = 0; j < kPatch; ++j) ResultsOfLine(points + j, kPatch, rows + j, kPatch);
      for (int64_t r = 0; r < kResults; ++r) {
        ResultsOfLine(rows + kPatch * r, 1, results + kResults * r, 1);
      }
      for (int64_t q = 0; q < kResults * kResults; ++q) {
        _mm256_storeu_ps(scratch.results.get() + q * sum_stride_ + n, results[q]);
      }
    }
    const Place place = PlaceOf(patch);
    for (int64_t q = 0; q < kResults * kResults; ++q) {
      const int64_t row = place.row + q / kResults, column = place.column + q % kResults;
      if (row < 0 || row >= call_.rows || column >= call_.columns) continue;
      finisher_.Run(scratch.results.get() + q * sum_stride_, frame,
                    row * call_.out_row_step + column * call_.out_step);
    }
  }

  const ConvolutionCall& call_;
  const WinogradWeight& weight_;
  void (*const run_)(const GemmTile& tile);
  const Finisher<float> finisher_;
  const int64_t channels_, panels_, sum_stride_;
  const int64_t above_;  // rows of the first patches that are above the call's
  const int64_t patches_a_row_, patches_a_frame_;
  const std::vector<float> zeros_;  // a position outside
};

}  // namespace

bool WinogradWeight::Suits(const Taps& taps, int64_t channels, int64_t n, Element element,
                           GemmIsa isa) {
  const GemmKernel& kernel = KernelOf(isa);
  const bool floats = element == Element::kFloat32 && kernel.units == GemmUnits::kFloats;
  return floats && taps.rows == 3 && taps.columns == 3 &&
         BytesOf(taps, channels, n) <= kMostWeightBytes;
}

int64_t WinogradWeight::BytesOf(const Taps& taps, int64_t channels, int64_t n) {
  const int64_t columns = CeilDiv(n, kPanelColumns) * kPanelColumns;
  return kWinogradPoints * taps.frames * channels * columns * static_cast<int64_t>(sizeof(float));
}

WinogradWeight::WinogradWeight(const float* weight, const Taps& taps, int64_t channels, int64_t n,
                               GemmIsa isa, const RunWorkers& run_workers) {
  const int64_t k = taps.frames * channels, count = n * k;
  std::vector<float> numbers(static_cast<size_t>(kWinogradPoints * count));
  for (int64_t i = 0; i < count; ++i) {
    const auto points =
        WeightAtPoints(weight + i / channels * 9 * channels + i % channels, channels);
    for (int64_t point = 0; point < kWinogradPoints; ++point) {
      numbers[static_cast<size_t>(point * count + i)] =
          static_cast<float>(points[static_cast<size_t>(point)]);
    }
  }
  for (int64_t point = 0; point < kWinogradPoints; ++point) {
    points_.emplace_back(numbers.data() + point * count, Element::kFloat32, n, k, isa, run_workers);
  }
}

void ConvolveWinograd(const ConvolutionCall& call, const WinogradWeight& weight,
                      const RunWorkers& run_workers) {
  if (call.frames * call.rows * call.columns > 0) Convolver(call, weight).Run(run_workers);
}

}  // namespace denoised::kernels
