#include "backends/kernels/gemm.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backends/kernels/activations.h"
#include "backends/kernels/gemm_tile.h"
#include "backends/stop_point.h"

namespace denoised::kernels {
namespace {

// Units that are summed from zero before they are added to the rest.
constexpr int64_t kPieceUnits = 256;
// Rows and panels of a task: their part of x, of the weights and of the sums stay in a core's
// cache.
constexpr int64_t kTaskTiles = 8;
constexpr int64_t kMostTaskPanels = 8;
// Rows that are packed before they are multiplied, in units.
constexpr int64_t kMostPackedUnits = int64_t{8} << 20;
constexpr int64_t kWantedTasks = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// ---- rows --------------------------------------------------------------------------------------

// Where the rows of x come from and what a unit of them is.
struct RowSource {
  const void* data;
  int64_t stride;
  int64_t k;
  Element element;
  bool pairs;

  // Unit `u` of a row; zero-padded where a pair is cut.
  uint32_t Unit(int64_t row, int64_t u) const {
    if (element == Element::kFloat32) {
      return FloatBits(static_cast<const float*>(data)[row * stride + u]);
    }
    const uint16_t* x = static_cast<const uint16_t*>(data) + row * stride;
    if (!pairs) return static_cast<uint32_t>(x[u]) << 16;
    const uint32_t second = 2 * u + 1 < k ? x[2 * u + 1] : 0;
    return x[2 * u] | second << 16;
  }

  // Four whole units from `u` on.
  __m128 Four(int64_t row, int64_t u) const {
    if (element == Element::kFloat32) {
      return _mm_loadu_ps(static_cast<const float*>(data) + row * stride + u);
    }
    const uint16_t* x = static_cast<const uint16_t*>(data) + row * stride;
    if (pairs) return _mm_loadu_ps(reinterpret_cast<const float*>(x + 2 * u));
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + u));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16));
  }
};

// `height` rows from `first` on, of which the last ones may lie past `rows`: zeros. To
// [units][height].
void PackRows(const RowSource& source, int64_t first, int64_t rows, int height, int64_t units,
              uint32_t* out) {
  const int64_t whole = (source.pairs ? source.k / 2 : units) / 4 * 4;
  for (int r = 0; r < height; r += 4) {
    int64_t u = 0;
    for (; first + r + 4 <= rows && u < whole; u += 4) {
      __m128 a = source.Four(first + r, u), b = source.Four(first + r + 1, u);
      __m128 c = source.Four(first + r + 2, u), d = source.Four(first + r + 3, u);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      float* to = reinterpret_cast<float*>(out + u * height + r);
      _mm_storeu_ps(to, a);
      _mm_storeu_ps(to + height, b);
      _mm_storeu_ps(to + 2 * height, c);
      _mm_storeu_ps(to + 3 * height, d);
    }
    for (; u < units; ++u) {
      for (int i = r; i < r + 4; ++i) {
        out[u * height + i] = first + i < rows ? source.Unit(first + i, u) : 0;
      }
    }
  }
}

// ---- results -----------------------------------------------------------------------------------

void StoreEight(float* y, __m256 x) { _mm256_storeu_ps(y, x); }

// Round to nearest even; NaN stays NaN.
void StoreEight(uint16_t* y, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words =
      _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(packed));
}

// One row of a task: sums + bias, activated, rounded.
template <typename T>
void FinishRow(const float* sums, const float* bias, Activation activation, int64_t columns, T* y) {
  constexpr int64_t kLanes = 8;
  for (int64_t n = 0; n < columns; n += kLanes) {
    const int64_t left = std::min(columns - n, kLanes);
    alignas(32) float padded[kLanes] = {};
    __m256 x = _mm256_loadu_ps(sums + n);  // sums are padded to whole panels
    if (bias != nullptr) {
      if (left < kLanes) std::memcpy(padded, bias + n, static_cast<size_t>(left) * 4);
      x = _mm256_add_ps(x, _mm256_loadu_ps(left < kLanes ? padded : bias + n));
    }
    if (activation == Activation::kGeluTanh) x = GeluTanh8(x);
    if (activation == Activation::kSilu) x = Silu8(x);
    T rounded[kLanes];
    StoreEight(left < kLanes ? rounded : y + n, x);
    if (left < kLanes) std::memcpy(y + n, rounded, static_cast<size_t>(left) * sizeof(T));
  }
}

// ---- one call ----------------------------------------------------------------------------------

GemmTileKernel KernelOf(const WeightPanels& weight) {
  const bool widen = weight.element() == Element::kBFloat16;
  switch (weight.isa()) {
    case GemmIsa::kAvx2:
      return widen ? GemmTileAvx2Widen : GemmTileAvx2;
    case GemmIsa::kAvx512:
      return widen ? GemmTileAvx512Widen : GemmTileAvx512;
    case GemmIsa::kAvx512Bf16:
      return GemmTileAvx512Bf16;
  }
  return GemmTileAvx2;
}

class GemmRunner {
 public:
  GemmRunner(const GemmCall& call, const WeightPanels& weight)
      : call_(call),
        weight_(weight),
        kernel_(KernelOf(weight)),
        source_{call.x, call.x_stride, weight.k(), weight.element(), weight.pairs()},
        units_(weight.units()) {}

  void Run(const RunWorkers& run_workers) {
    const int64_t tiles = CeilDiv(call_.rows, kTileRows);
    const int64_t at_once = std::clamp<int64_t>(kMostPackedUnits / (units_ * kTileRows), kTaskTiles,
                                                tiles + kTaskTiles) /
                            kTaskTiles * kTaskTiles;
    packed_ = Allocate<uint32_t>(std::min(at_once, tiles) * kTileRows * units_);
    for (int64_t first = 0; first < tiles; first += at_once) {
      RunTiles(first, std::min(tiles, first + at_once), run_workers);
      stop_.ThrowIfAsked();
    }
  }

 private:
  void RunTiles(int64_t first, int64_t last, const RunWorkers& run_workers) {
    std::atomic<int64_t> next{first};
    run_workers(last - first, [&] {
      for (int64_t t; (t = next.fetch_add(1)) < last;) {
        PackRows(source_, t * kTileRows, call_.rows, HeightOf(t), units_, Packed(t - first));
      }
    });
    const int64_t row_blocks = CeilDiv(last - first, kTaskTiles);
    const int64_t panels = weight_.panels();
    const int64_t width =
        std::clamp<int64_t>(panels * row_blocks / kWantedTasks, 1, kMostTaskPanels);
    const int64_t tasks = row_blocks * CeilDiv(panels, width);
    std::atomic<int64_t> task{0};
    run_workers(tasks, [&] {
      const Buffer<float> sums =
          Allocate<float>(kTaskTiles * kTileRows * kMostTaskPanels * kPanelColumns);
      for (int64_t i; (i = task.fetch_add(1)) < tasks && !stop_.Asked();) {
        const int64_t tile = first + i % row_blocks * kTaskTiles, panel = i / row_blocks * width;
        RunTask(first, tile, std::min(last, tile + kTaskTiles), panel,
                std::min(panels, panel + width), sums.get());
      }
    });
  }

  // All of K for some tiles of rows against some panels.
  void RunTask(int64_t packed_first, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
               int64_t panel_end, float* sums) const {
    const int64_t stride = (panel_end - panel_begin) * kPanelColumns;
    for (int64_t unit = 0; unit < units_; unit += kPieceUnits) {
      const int64_t count = std::min(kPieceUnits, units_ - unit);
      for (int64_t p = panel_begin; p < panel_end; ++p) {
        for (int64_t t = tile_begin; t < tile_end; ++t) {
          const int height = HeightOf(t);
          kernel_({Packed(t - packed_first) + unit * height, weight_.Panel(p, unit), count, height,
                   unit == 0,
                   sums + (t - tile_begin) * kTileRows * stride + (p - panel_begin) * kPanelColumns,
                   stride});
        }
      }
    }
    Finish(tile_begin, tile_end, panel_begin, panel_end, sums);
  }

  void Finish(int64_t tile_begin, int64_t tile_end, int64_t panel_begin, int64_t panel_end,
              const float* sums) const {
    const int64_t stride = (panel_end - panel_begin) * kPanelColumns;
    const int64_t column = panel_begin * kPanelColumns;
    const int64_t columns = std::min(weight_.n(), panel_end * kPanelColumns) - column;
    const float* bias = call_.bias != nullptr ? call_.bias + column : nullptr;
    const int64_t end = std::min(call_.rows, tile_end * kTileRows);
    for (int64_t row = tile_begin * kTileRows; row < end; ++row, sums += stride) {
      const int64_t at = row * call_.y_stride + column;
      if (weight_.element() == Element::kFloat32) {
        FinishRow(sums, bias, call_.activation, columns, static_cast<float*>(call_.y) + at);
      } else {
        FinishRow(sums, bias, call_.activation, columns, static_cast<uint16_t*>(call_.y) + at);
      }
    }
  }

  int HeightOf(int64_t tile) const {
    const int64_t left = call_.rows - tile * kTileRows;
    return static_cast<int>(std::min<int64_t>(kTileRows, CeilDiv(left, 4) * 4));
  }
  uint32_t* Packed(int64_t tile) const { return packed_.get() + tile * kTileRows * units_; }

  const GemmCall& call_;
  const WeightPanels& weight_;
  const GemmTileKernel kernel_;
  const RowSource source_;
  const int64_t units_;
  Buffer<uint32_t> packed_;
  SharedStop stop_;
};

}  // namespace

const char* GemmIsaName(GemmIsa isa) {
  switch (isa) {
    case GemmIsa::kAvx2:
      return "avx2";
    case GemmIsa::kAvx512:
      return "avx512";
    case GemmIsa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

GemmIsa BestGemmIsa(Element element, const DeviceInfo& cpu) {
  if (element == Element::kBFloat16 && cpu.avx512_bf16) return GemmIsa::kAvx512Bf16;
  return cpu.avx512 ? GemmIsa::kAvx512 : GemmIsa::kAvx2;
}

WeightPanels::WeightPanels(const void* weight, Element element, int64_t n, int64_t k, GemmIsa isa)
    : element_(element), isa_(isa), n_(n), k_(k), data_(Allocate<char>(bytes())) {
  for (int64_t panel = 0; panel < panels(); ++panel) PackPanel(weight, panel);
}

int64_t WeightPanels::panels() const { return CeilDiv(n_, kPanelColumns); }

int64_t WeightPanels::unit_bytes() const {
  const bool half = element_ == Element::kBFloat16 && !pairs();
  return kPanelColumns * (half ? 2 : 4);
}

void WeightPanels::PackPanel(const void* weight, int64_t panel) {
  const RowSource source{weight, k_, k_, element_, pairs()};
  char* out = data_.get() + panel * panel_bytes();
  const int64_t first = panel * kPanelColumns;
  if (unit_bytes() == kPanelColumns * 4) {
    PackRows(source, first, n_, kPanelColumns, units(), reinterpret_cast<uint32_t*>(out));
    return;
  }
  uint16_t* half = reinterpret_cast<uint16_t*>(out);
  for (int64_t u = 0; u < units(); ++u) {
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      *half++ = first + c < n_ ? static_cast<uint16_t>(source.Unit(first + c, u) >> 16) : 0;
    }
  }
}

void Gemm(const GemmCall& call, const WeightPanels& weight, const RunWorkers& run_workers) {
  if (call.rows > 0) GemmRunner(call, weight).Run(run_workers);
}

}  // namespace denoised::kernels
