// backends/cuda/ptx_hopper.cuh on the emulated device.
#ifndef DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_
#define DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace denoised::cuda {

// `transposed`: of b, elements of a row, which are of one key, are neighbours.
void BeginBFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool transposed,
                          bool accumulate);
void BeginFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool transposed,
                         bool accumulate);
template <int kTransposed, int kAccumulate>
void BeginBFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
  BeginBFloat16Product(d, a, b, kTransposed != 0, kAccumulate != 0);
}
template <int kTransposed, int kAccumulate>
void BeginFloat16Product(float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
  BeginFloat16Product(d, a, b, kTransposed != 0, kAccumulate != 0);
}

void BeginProducts();
void EndProducts();
void WaitForProducts(int pending);
template <int kPending>
void WaitForProducts() {
  WaitForProducts(kPending);
}

// The compiler does not know that products use these meanwhile.
template <class T>
void Settle(T& registers) {
  asm volatile("" ::"r"(&registers) : "memory");
}

inline void PublishCopies() {}

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_PTX_HOPPER_CUH_
