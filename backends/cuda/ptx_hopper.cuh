// The instructions of compute capability 9.0 alone: products of a warpgroup that run beside it
// (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
#ifndef DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_
#define DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace denoised::cuda {

// d = a b, plus d where kAccumulate, begun by the four warps of a warpgroup: 64 rows by 64 columns
// over 16 elements of bfloat16; `b` describes its place in shared memory. d and a must not be
// touched until WaitForProducts.
template <int kTransposed, int kAccumulate>
__forceinline__ __device__ void BeginBFloat16Product(float (*d)[4], const uint32_t (&a)[4],
                                                     uint64_t b) {
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

// The same in float16.
template <int kTransposed, int kAccumulate>
__forceinline__ __device__ void BeginFloat16Product(float (*d)[4], const uint32_t (&a)[4],
                                                    uint64_t b) {
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

inline __device__ void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

inline __device__ void EndProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// All but the newest `kPending` groups are done.
template <int kPending>
__device__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// The compiler may neither move writes of these registers behind this point nor reads before it; it
// does not know that products work on them between BeginProducts and WaitForProducts.
template <int kGroups>
__forceinline__ __device__ void Settle(float (&d)[kGroups][4]) {
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
  }
}

template <int kSteps>
__forceinline__ __device__ void Settle(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
  }
}

// What this thread copied to shared memory becomes visible to the tensor cores.
inline __device__ void PublishCopies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_
