// The AMX tile kernel over tiles in memory, so that its indices are tested where there is no AMX.
// Nothing but the kernel may be in this file: it is compiled for AVX-512 BF16.
#include "tests/backends/tile_amx_emulated.h"

#include <immintrin.h>

#include <cstring>

#include "backends/kernels/tile.h"

namespace denoised::kernels {
namespace {

#include "backends/kernels/vector_amx.h"

struct EmulatedTiles {
  // As the processor's: a register that was never loaded since Start holds zeros.
  static void Start() { std::memset(tiles, 0, sizeof(tiles)); }
  static void End() {}

  template <int kTile>
  static void Zero() {
    std::memset(tiles[kTile], 0, sizeof(tiles[kTile]));
  }

  template <int kTile>
  static void Load(const void* data, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(tiles[kTile][row], static_cast<const char*>(data) + row * stride, 64);
    }
  }

  template <int kTile>
  static void Store(void* data, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(static_cast<char*>(data) + row * stride, tiles[kTile][row], 64);
    }
  }

  // TDPBF16PS: pairs along a's row against pairs down b's column.
  template <int kResult, int kRows, int kColumns>
  static void Dot() {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; ++column) {
        float sum;
        std::memcpy(&sum, &tiles[kResult][row][column], 4);
        for (int k = 0; k < 16; ++k) {
          const uint32_t a = tiles[kRows][row][k], b = tiles[kColumns][k][column];
          sum += Half(a) * Half(b) + Half(a >> 16) * Half(b >> 16);
        }
        std::memcpy(&tiles[kResult][row][column], &sum, 4);
      }
    }
  }

 private:
  static float Half(uint32_t bits) {
    bits <<= 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  static inline thread_local uint32_t tiles[8][16][16];
};

#include "backends/kernels/tile_impl.h"

}  // namespace

void TileAmxEmulated(const TileJob& job, int width) {
  RunTileOfWidth<TileProducts<EmulatedTiles>>(job, width);
}

}  // namespace denoised::kernels
