// One block-sparse flash attention for the CPU. Dense attention is the full list of blocks; every
// sparse backend is a maker of lists.
//
// Queries and keys are taken in an order that the caller gives (tile order, chunk order), cut into
// blocks of at most 64. For each (list, query block) the caller names the key blocks to attend.
// Softmax runs online over groups of key blocks as in FlashAttention-2 (arXiv 2307.08691). Scores
// are held transposed, one query a lane, so that no step needs a horizontal sum.
//
// What is not finite is not lost: a row that attends a NaN score, or one of +inf, is NaN; values
// that are not finite reach exactly the rows that attend them. Int8 scores know keys less their
// mean, so there a key that is not finite makes its whole head NaN, and a query its row.
//
// Torch-free. A row's bits depend on its own query, its keys and its list, never on the batch, the
// number of threads or the other rows of its block. Limits: head size 1..1024.
#ifndef DENOISED_BACKENDS_KERNELS_BLOCK_SPARSE_H_
#define DENOISED_BACKENDS_KERNELS_BLOCK_SPARSE_H_

#include <cstdint>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/kernels/workers.h"

namespace denoised::kernels {

inline constexpr int kBlock = 64;  // most queries or keys in a block
inline constexpr int kMaxHeadSize = 1024;
// Packed keys and values held at once, in units of four bytes; more heads than fit are taken in
// turns, one at least. What is written is read soon after, so it should still be in a shared cache.
inline constexpr int64_t kMaxPackedUnits = int64_t{4} << 20;

// Positions [first, first + length) of an order; 1 <= length <= kBlock.
struct Span {
  int32_t first = 0;
  int32_t length = 0;
};

// Which key blocks each query block attends. Shared by all threads, immutable during a call.
struct BlockPlan {
  std::vector<int32_t> query_order;  // token at each position; empty: position = token
  std::vector<int32_t> key_order;
  std::vector<Span> query_blocks;
  bool covers_queries =
      true;  // every query is in a block; else the caller fills the others' output
  std::vector<Span> key_blocks;

  // Number of lists: 0 = dense (every key block), 1 = one for all heads, heads = one a head,
  // batch * heads = one each.
  int64_t lists = 0;
  std::vector<int64_t> row_begin;  // [lists * query_blocks + 1], into columns
  std::vector<int32_t> columns;    // key block numbers
  // Empty, or one word an entry of `columns`: bit i set = query i of the block attends that block.
  std::vector<uint64_t> row_masks;
};

// Cuts [0, length) into blocks of kBlock.
std::vector<Span> CutEvenly(int64_t length);

// The plan of dense attention; a causal one leaves out the key blocks that no query of a block
// sees.
BlockPlan DensePlan(int64_t q_len, int64_t kv_len, bool causal = false);

// A [B, S, H, D] tensor whose D is contiguous; strides in elements.
struct View {
  const void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

enum class Element : uint8_t { kFloat32, kBFloat16 };
inline int64_t ElementBytes(Element element) { return element == Element::kFloat32 ? 4 : 2; }

struct BlockSparseCall {
  Element element = Element::kFloat32;
  int64_t batch = 0, heads = 0, head_size = 0, q_len = 0, kv_len = 0;
  View query, key, value;
  void* out = nullptr;  // [B, S_q, H, D] contiguous
  float scale = 1;      // > 0
  bool causal = false;  // token j visible to token i where j <= i
  // Additive mask, null or [B, H, S_q, S_kv] by strides (0 = broadcast); -inf hides.
  const float* bias = nullptr;
  int64_t bias_strides[4] = {0, 0, 0, 0};
  // So many keys like the last one. More than 1: keys in order, exact scores.
  int64_t last_key_count = 1;
};

// What the kernel is written for. The first four are exact; the others round queries and keys to 8
// bits a token, keys after their mean is taken off (SageAttention, arXiv 2410.02367), only by
// request.
//
// Float32 and int8 scores have the same bits on AVX2, AVX-512 and VNNI; where there are
// instructions for bfloat16, pairs of it are multiplied and the bits are others. kVnniBf16Int8 and
// kAmxInt8 round probabilities and values to bfloat16, the other int8 ones keep them in float32.
enum class Isa : uint8_t {
  kAvx2,
  kAvx512,
  kAvx512Bf16,
  kAmxBf16,
  kAvx2Int8,
  kAvx512Int8,
  kVnniInt8,
  kVnniBf16Int8,
  kAmxInt8,
};
inline constexpr Isa kAllIsas[] = {Isa::kAvx2,     Isa::kAvx512,       Isa::kAvx512Bf16,
                                   Isa::kAmxBf16,  Isa::kAvx2Int8,     Isa::kAvx512Int8,
                                   Isa::kVnniInt8, Isa::kVnniBf16Int8, Isa::kAmxInt8};
const char* IsaName(Isa isa);
bool IsInt8(Isa isa);

// Whether `cpu` has the instructions.
bool HasIsa(Isa isa, const DeviceInfo& cpu);

// The widest exact one that serves `element` on the CPU.
Isa BestIsa(Element element, const DeviceInfo& cpu);

// The same for int8 scores.
Isa Int8Isa(const DeviceInfo& cpu);

struct TileJob;
using TileKernel = void (*)(const TileJob& job, int width);

// Fills call.out, with a stop point (stop_point.h) before each query block: what it throws leaves
// call.out half filled. The plan must fit the call (checked by the plan's maker, not here).
// `kernel` stands in for the instruction set's own: how one is tested where its instructions are
// missing.
void BlockSparseAttention(const BlockSparseCall& call, const BlockPlan& plan, Isa isa,
                          const RunWorkers& run_workers, TileKernel kernel = nullptr);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_BLOCK_SPARSE_H_
