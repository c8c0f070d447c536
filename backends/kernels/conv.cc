#include "backends/kernels/conv.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "backends/kernels/conv_common.h"
#include "backends/kernels/gemm_kernels.h"
#include "backends/kernels/thread_buffer.h"

namespace denoised::kernels {
namespace {

// Positions of a strip: those that a tile of rows sees through one row of taps.
constexpr int kStrip = 16;
static_assert(kTileRows + kMostColumnTaps - 1 <= kStrip);
// Units of one chain: all columns of a row of taps where they fit, else a part of one tap.
constexpr int64_t kMostChainUnits = 288;
// Tiles of a task: their strips and sums stay in a core's cache, and each reads all weights once.
constexpr int64_t kMostTaskTiles = 8;
constexpr int64_t kWantedTasks = 8;

// ---- strips ------------------------------------------------------------------------------------

// What one position's channels are as units.
struct Channels {
  int64_t count;
  int64_t units;
  Element element;
  bool pairs;

  uint32_t Unit(const void* position, int64_t u) const {
    if (element == Element::kFloat32) {
      uint32_t bits;
      std::memcpy(&bits, static_cast<const float*>(position) + u, 4);
      return bits;
    }
    const uint16_t* x = static_cast<const uint16_t*>(position);
    if (!pairs) return static_cast<uint32_t>(x[u]) << 16;
    const uint32_t second = 2 * u + 1 < count ? x[2 * u + 1] : 0;
    return x[2 * u] | second << 16;
  }

  // Units from the first on that a load of four may take.
  int64_t in_fours() const { return (pairs ? count / 2 : units) / 4 * 4; }

  __m128 Four(const void* position, int64_t u) const {
    if (element == Element::kFloat32) {
      return _mm_loadu_ps(static_cast<const float*>(position) + u);
    }
    const uint16_t* x = static_cast<const uint16_t*>(position);
    if (pairs) return _mm_loadu_ps(reinterpret_cast<const float*>(x + 2 * u));
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + u));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16));
  }
};

// `count` positions to [units][kStrip]; what is past them stays as it was.
void PackStrip(const Channels& channels, const void* const* positions, int count, uint32_t* out) {
  const int64_t fours = channels.in_fours();
  for (int p = 0; p < count; p += 4) {
    const void* const* at = positions + p;
    for (int64_t u = 0; u < fours; u += 4) {
      __m128 a = channels.Four(at[0], u), b = channels.Four(at[1], u);
      __m128 c = channels.Four(at[2], u), d = channels.Four(at[3], u);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      float* to = reinterpret_cast<float*>(out + u * kStrip + p);
      _mm_store_ps(to, a);
      _mm_store_ps(to + kStrip, b);
      _mm_store_ps(to + 2 * kStrip, c);
      _mm_store_ps(to + 3 * kStrip, d);
    }
    for (int64_t u = fours; u < channels.units; ++u) {
      for (int i = 0; i < 4; ++i) out[u * kStrip + p + i] = channels.Unit(at[i], u);
    }
  }
}

// ---- one call ----------------------------------------------------------------------------------

class Convolver {
 public:
  Convolver(const ConvolutionCall& call, const WeightPanels& weight)
      : call_(call),
        weight_(weight),
        run_(GemmKernelOf(weight).run),
        channels_{call.channels, weight.units() / call.taps.count(), weight.element(),
                  weight.kernel().units == GemmUnits::kPairs},
        element_size_(ElementBytes(weight.element())),
        tiles_a_row_(CeilDiv(call.columns, kTileRows)),
        tiles_a_frame_(tiles_a_row_ * call.rows),
        sum_stride_(weight.panels() * kPanelColumns),
        zeros_(static_cast<size_t>(call.channels * element_size_ + 16)) {
    FindChains();
  }

  void Run(const RunWorkers& run_workers) {
    const int64_t task_tiles =
        std::clamp<int64_t>(CeilDiv(tiles_a_frame_ * call_.frames, kWantedTasks), 1,
                            std::min(kMostTaskTiles, tiles_a_frame_));
    RunParts(
        call_.frames, tiles_a_frame_, task_tiles, run_workers,
        [&] {
          return Scratch(task_tiles * kTileRows * sum_stride_,
                         task_tiles * channels_.units * kStrip);
        },
        [&](int64_t frame, int64_t first, int64_t count, const Scratch& scratch) {
          RunTask(frame, first, count, scratch);
        });
  }

 private:
  struct Scratch {
    Scratch(int64_t sums, int64_t strips) : sums(sums), strips(strips) {}
    const ThreadBuffer<float> sums;
    const ThreadBuffer<uint32_t> strips;
  };
  // Part of a row of taps: `runs` columns of `units` each, from a column and a unit on.
  struct Chain {
    int64_t column, unit, units;
    int runs;
  };
  struct Tile {
    int64_t row, column;
    int height;    // rows of the register tile
    int64_t real;  // of those, positions that there are
  };

  void FindChains() {
    const int64_t columns = call_.taps.columns, units = channels_.units;
    if (columns * units <= kMostChainUnits) {
      chains_ = {{0, 0, units, static_cast<int>(columns)}};
      return;
    }
    const int64_t part = CeilDiv(units, CeilDiv(units, kMostChainUnits));
    for (int64_t column = 0; column < columns; ++column) {
      for (int64_t u = 0; u < units; u += part) {
        chains_.push_back({column, u, std::min(part, units - u), 1});
      }
    }
  }

  Tile TileAt(int64_t index) const {
    const int64_t column = index % tiles_a_row_ * kTileRows;
    const int64_t real = std::min<int64_t>(kTileRows, call_.columns - column);
    return {index / tiles_a_row_, column, static_cast<int>(CeilDiv(real, 4) * 4), real};
  }

  void RunTask(int64_t frame, int64_t first, int64_t count, const Scratch& scratch) const {
    bool begun[kMostTaskTiles] = {};
    for (int64_t f = 0; f < call_.taps.frames; ++f) {
      const char* in = static_cast<const char*>(call_.in[frame + f]);
      if (in == nullptr) continue;
      for (int64_t r = 0; r < call_.taps.rows; ++r) {
        RunRowOfTaps(in, f, r, first, count, scratch, begun);
      }
    }
    Finish(frame, first, count, scratch.sums.get());
  }

  void RunRowOfTaps(const char* in, int64_t tap_frame, int64_t tap_row, int64_t first,
                    int64_t count, const Scratch& scratch, bool* begun) const {
    bool inside[kMostTaskTiles];
    for (int64_t i = 0; i < count; ++i) {
      const Tile tile = TileAt(first + i);
      const int64_t row = tile.row + call_.first_row + tap_row;
      inside[i] = row >= 0 && row < call_.in_rows;
      if (inside[i]) Pack(in, row, tile, StripOf(scratch, i));
    }
    const int64_t taps = (tap_frame * call_.taps.rows + tap_row) * call_.taps.columns;
    for (const Chain& chain : chains_) {
      const int64_t unit = (taps + chain.column) * channels_.units + chain.unit;
      const int64_t step = weight_.unit_bytes() / count;  // each tile fetches its part of the next
      for (int64_t p = 0; p < weight_.panels(); ++p) {
        const char* const soon = weight_.Panel(p + 1 < weight_.panels() ? p + 1 : 0, unit);
        for (int64_t i = 0; i < count; ++i) {
          if (!inside[i]) continue;
          GemmTile tile{};
          tile.soon = soon + i * step * chain.units * chain.runs;
          tile.soon_step = step;
          tile.rows = StripOf(scratch, i) + chain.unit * kStrip + chain.column;
          tile.panel = weight_.Panel(p, unit);
          tile.units = chain.units;
          tile.height = TileAt(first + i).height;
          tile.first = !begun[i];
          tile.sums = scratch.sums.get() + i * kTileRows * sum_stride_ + p * kPanelColumns;
          tile.sum_stride = sum_stride_;
          tile.runs = chain.runs;
          tile.row_stride = kStrip;
          run_(tile);
        }
      }
      for (int64_t i = 0; i < count; ++i) begun[i] = begun[i] || inside[i];
    }
  }

  uint32_t* StripOf(const Scratch& scratch, int64_t i) const {
    return scratch.strips.get() + i * channels_.units * kStrip;
  }

  void Pack(const char* in, int64_t row, const Tile& tile, uint32_t* strip) const {
    const int count = tile.height + static_cast<int>(call_.taps.columns) - 1;
    const void* positions[kStrip];
    for (int i = 0; i < kStrip; ++i) {
      const int64_t column = tile.column + call_.first_column + i;
      const bool there = i < count && column >= 0 && column < call_.in_columns;
      positions[i] = there ? in + (row * call_.in_columns + column) * call_.in_step * element_size_
                           : zeros_.data();
    }
    PackStrip(channels_, positions, count, strip);
  }

  void Finish(int64_t frame, int64_t first, int64_t count, float* sums) const {
    if (weight_.element() == Element::kFloat32) {
      FinishTiles(Finisher<float>(call_, weight_.n()), frame, first, count, sums);
    } else {
      FinishTiles(Finisher<uint16_t>(call_, weight_.n()), frame, first, count, sums);
    }
  }

  template <typename T>
  void FinishTiles(const Finisher<T>& finisher, int64_t frame, int64_t first, int64_t count,
                   float* sums) const {
    for (int64_t i = 0; i < count; ++i, sums += kTileRows * sum_stride_) {
      const Tile tile = TileAt(first + i);
      for (int64_t c = 0; c < tile.real; ++c) {
        finisher.Run(sums + c * sum_stride_, frame,
                     tile.row * call_.out_row_step + (tile.column + c) * call_.out_step);
      }
    }
  }

  const ConvolutionCall& call_;
  const WeightPanels& weight_;
  void (*const run_)(const GemmTile& tile);
  const Channels channels_;
  const int64_t element_size_, tiles_a_row_, tiles_a_frame_, sum_stride_;
  const std::vector<char> zeros_;  // a position outside
  std::vector<Chain> chains_;
};

}  // namespace

int64_t TapChannels(int64_t channels, GemmIsa isa) {
  return KernelOf(isa).units == GemmUnits::kPairs ? (channels + 1) / 2 * 2 : channels;
}

void Convolve(const ConvolutionCall& call, const WeightPanels& weight,
              const RunWorkers& run_workers) {
  if (weight.kernel().amx) throw std::logic_error("a convolution takes no panels for AMX");
  if (call.frames * call.rows * call.columns > 0) Convolver(call, weight).Run(run_workers);
}

}  // namespace denoised::kernels
