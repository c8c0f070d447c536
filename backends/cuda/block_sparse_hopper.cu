// Block-sparse attention for compute capability 9.0: as block_sparse_half.cu, with wgmma for both
// products. The four warps are one warpgroup of 64 query rows; keys and values are read by the
// tensor cores from shared memory through descriptors, without passing registers. Two thread blocks
// share a multiprocessor: one multiplies while the other computes its softmax.
//
// Descriptors follow the PTX ISA, section "Asynchronous warpgroup level matrix shared memory
// layout", 128-byte swizzle: in 16-byte units, bits 0-13 the address, 16-29 the leading and 32-45
// the stride offset, 62-63 the swizzle. Keys are K-major: rows of 8 keys are 1024 bytes apart, a
// step of 16 elements is 32 bytes further in its panel. Values are transposed: groups of 8 keys are
// 1024 bytes apart, a step of 16 keys 2048; a product takes one panel of 64 elements.
#include "backends/cuda/block_sparse_tile.cuh"

namespace denoised::cuda {
namespace {

constexpr int kHead = kMaxHeadSize;
constexpr int kPanels = kHead / 64;
constexpr int kPanelBytes = Tile<kHead>::kPanelBytes;

// Of what is K-major the leading offset is not looked at; CUTLASS writes 1.
constexpr uint64_t kNoLeading = 1;

__device__ uint64_t Descriptor(uint32_t address, uint64_t leading) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return (static_cast<uint64_t>(address) & 0x3ffff) / 16 | leading << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

// d = a b, plus d where kAccumulate: 64 rows by 64 columns over 16 elements, b in shared memory.
// Asynchronous: d and a must not be touched until WaitForProducts.
template <int kTransposed, int kAccumulate>
__device__ void MultiplyAdd(BFloat16, float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, %38, 1, 1, %37;\n"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
        "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed), "n"(kAccumulate));
}

template <int kTransposed, int kAccumulate>
__device__ void MultiplyAdd(Float16, float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, %38, 1, 1, %37;\n"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
        "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed), "n"(kAccumulate));
}

__device__ void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ void EndProducts() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

__device__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
}

// The compiler may neither move writes of these registers behind this point nor reads before it; it
// does not know that products work on them between BeginProducts and WaitForProducts.
template <int kGroups>
__device__ void Settle(float (&d)[kGroups][4]) {
#pragma unroll
  for (auto& group : d) {
    asm volatile("" : "+f"(group[0]), "+f"(group[1]), "+f"(group[2]), "+f"(group[3])::"memory");
  }
}

template <int kSteps>
__device__ void Settle(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (auto& step : a) {
    asm volatile("" : "+r"(step[0]), "+r"(step[1]), "+r"(step[2]), "+r"(step[3])::"memory");
  }
}

// What this thread copied to shared memory becomes visible to the tensor cores.
__device__ void PublishCopies() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Until WaitForProducts neither scores nor the query may be touched.
template <class T>
__device__ void BeginKeys(float (&scores)[kKeyGroups][4], const WarpState<kHead>& state,
                          uint32_t keys) {
#pragma unroll
  for (auto& group : scores) group[0] = group[1] = group[2] = group[3] = 0;
  BeginProducts();
  // The first does not read the sums, so that nothing hangs on when the zeros above are written.
  MultiplyAdd<0, 0>(T(), scores, state.query[0], Descriptor(keys, kNoLeading));
#pragma unroll
  for (int step = 1; step < kHead / 16; ++step) {
    MultiplyAdd<0, 1>(T(), scores, state.query[step],
                      Descriptor(keys + step / 4 * kPanelBytes + step % 4 * 32, kNoLeading));
  }
  EndProducts();
}

template <class T>
__device__ void MultiplyValues(const float (&probs)[kKeyGroups][4], WarpState<kHead>* state,
                               uint32_t values) {
  uint32_t a[kTile / 16][4];
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) PackProbs<T>(a[step], probs, step);
  Settle(a);
  Settle(state->out);
  BeginProducts();
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      MultiplyAdd<1, 1>(T(), state->out + 8 * panel, a[step],
                        Descriptor(values + panel * kPanelBytes + step * 2048, kPanelBytes / 16));
    }
  }
  EndProducts();
  WaitForProducts();
  Settle(state->out);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) BlockSparseHopper(const BlockSparseArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  const SharedTiles<kHead> tiles(memory);
  const Walk walk(args);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * kWarpRows + lane / 4;
  const float scale_log2 = args.scale * kLog2E;

  CopyQuery<kHead>(args, walk, tiles);
  CopyEntry<kHead>(args, walk, tiles, 0);  // one group with the queries
  WarpState<kHead> state;
  state.Clear();
  for (int64_t entry = 0; entry < walk.count; ++entry) {
    const Visible visible(args, walk, entry);
    WaitForCopies<0>();
    PublishCopies();
    __syncthreads();
    if (entry == 0) state.LoadQuery(tiles.query, warp, lane);
    float scores[kKeyGroups][4];
    BeginKeys<T>(scores, state, tiles.Keys(entry));
    CopyEntry<kHead>(args, walk, tiles, entry + 1);  // while the tensor cores work
    WaitForProducts();
    Settle(scores);
    visible.Apply(scores, row, lane);
    UpdateSoftmax<kHead>(scores, &state, scale_log2);
    MultiplyValues<T>(scores, &state, tiles.Values(entry));
    __syncthreads();  // the next turn copies over these keys and values
  }
  WaitForCopies<0>();
  StoreRows<T, kHead>(args, walk, &state, row, lane);
}

template <class T>
cudaError_t Launch(const BlockSparseArgs& args, cudaStream_t stream) {
  constexpr int kBytes = SharedTiles<kHead>::kBytes;
  const cudaError_t asked = cudaFuncSetAttribute(
      BlockSparseHopper<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (asked != cudaSuccess) return asked;
  BlockSparseHopper<T><<<GridOf(args), kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchBlockSparseHopper(const BlockSparseArgs& args, bool bfloat16,
                                    cudaStream_t stream) {
  return bfloat16 ? Launch<BFloat16>(args, stream) : Launch<Float16>(args, stream);
}

}  // namespace denoised::cuda
