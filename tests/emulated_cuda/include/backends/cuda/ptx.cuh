// backends/cuda/ptx.cuh on the emulated device.
#ifndef DENOISED_BACKENDS_CUDA_PTX_CUH_
#define DENOISED_BACKENDS_CUDA_PTX_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace denoised::cuda {

void CopyAsync(uint32_t target, const void* source, bool valid);
void CopyFloatAsync(uint32_t target, const float* source, bool valid);
void CommitCopies();
void WaitForCopies(int pending);
template <int kPending>
void WaitForCopies() {
  WaitForCopies(kPending);
}

void LoadMatrices(uint32_t (&r)[4], uint32_t address);
void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address);

float Exp2(float x);

void MultiplyAddBFloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void MultiplyAddFloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void MultiplyAddInt8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace denoised::cuda

#endif  // DENOISED_BACKENDS_CUDA_PTX_CUH_
