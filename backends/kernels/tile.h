// What the block-sparse driver hands to an instruction set's tile kernel: raw pointers only. The
// kernel files are compiled for wider instructions than the rest of the program, so they must not
// instantiate anything that another file could pick up at link time: no std containers here.
#ifndef DENOISED_BACKENDS_KERNELS_TILE_H_
#define DENOISED_BACKENDS_KERNELS_TILE_H_

#include <cstdint>

#include "backends/kernels/exp2_part.h"

namespace denoised::kernels {

// Key rows and head-size rows are packed in groups of kGroup: the height of the register tile.
inline constexpr int kGroup = 4;
// Where keys and values come in tiles of 16 rows by 16 units, blocks are padded to two rows of
// them.
inline constexpr int kTileKeyGroup = 32;
// Scores of this many keys are held before a softmax pass.
inline constexpr int kKeysPerPass = 256;
inline constexpr int kMaxWidth = 64;
// Weights below 2^this of their row's largest are 0: no weight may be a denormal number, with which
// every product can cost a hundred times its time. One above the least exponent of a normal number,
// since a rounded mantissa may be a little below 1.
inline constexpr float kLeastExponent = -125.0f;

// A unit is 32 bits: one float32, or two neighbouring bfloat16 (of one row for q and k, of two keys
// for v and the probabilities).
//
// keys:   [block][length4 / 4][units][4]          one unit of four keys
// values: [block][padded_size / 4][key units][4]   one key unit of four head-size columns
//
// On AMX both are matrices cut into tiles of [16 rows][16 units], rows of tiles one after the
// other: keys [length32][units], values transposed, [padded_size][key units]; padded_size is then a
// multiple of 32, with int8 scores of 64.
//
// Where scores are int8, a unit of q and k is four neighbouring bytes, keys plus 128 (unsigned) and
// queries signed; or, where there is no product of bytes, two neighbouring 16-bit words. The sums
// are the same whole numbers. Units of values stay as without.
struct PackedHead {
  const uint32_t* keys;
  const uint32_t* values;
  const float* key_scale;       // int8 only: [packed keys]
  const int32_t* block_first;   // per key block: position of its first key, in packed (padded) keys
  const int32_t* block_length;  // per key block: keys without padding, one or more
};

struct TileJob {
  PackedHead head;
  const uint32_t* query;        // [units][width] packed; width = query lanes
  const float* query_scale;     // int8 only: [width]
  const int32_t* query_offset;  // int8 only: [width], -128 * sum of the query's bytes; 0 with words
  int units;                    // of a key row
  int padded_size;              // head size, rounded up to 4, on AMX to 32
  float scale_log2;             // softmax scale * log2(e)
  int rows;                     // queries in use
  const int32_t* blocks;        // key blocks to attend; null: 0 .. num_blocks - 1
  const uint64_t* row_masks;    // null, or one word a block
  int num_blocks;
  // Hides or shifts single scores; null where nothing does. `scores` is [keys][width], not scaled;
  // where they are int8 each lane still lacks its query_scale.
  void (*edit)(const void* context, int block, float* scores, int width);
  const void* edit_context;
  bool resume;      // go on from max, sums and out, as earlier jobs of these queries left them
  float* max;       // [width]: the largest score
  float* sums;      // [width]: the denominator
  float* out;       // [padded_size][width]: the numerator
  float* scores;    // scratch [kKeysPerPass][width], with tiles two of them
  uint32_t* probs;  // scratch [kKeysPerPass][width]
};

// One (batch, head, query block). `width` is 16, 32 or 64.
using TileKernel = void (*)(const TileJob& job, int width);

void TileAvx2(const TileJob& job, int width);          // float32 units
void TileAvx2Int8(const TileJob& job, int width);      // words; values float32
void TileAvx512(const TileJob& job, int width);        // float32 units
void TileAvx512Int8(const TileJob& job, int width);    // words; values float32
void TileAvx512Bf16(const TileJob& job, int width);    // bfloat16 pairs
void TileVnniInt8(const TileJob& job, int width);      // bytes; values float32
void TileVnniBf16Int8(const TileJob& job, int width);  // bytes; values bfloat16 pairs
void TileAmxBf16(const TileJob& job, int width);       // tiles of bfloat16 pairs
void TileAmxInt8(const TileJob& job, int width);       // the same, scores from bytes

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_TILE_H_
