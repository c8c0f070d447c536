// While a stream is captured whoever waits for the device, copies between it and the host or asks
// for a result whose size depends on numbers gets the error that CUDA gives. What is captured has
// run by the end of the capture.
#ifndef DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDAGRAPH_H_
#define DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDAGRAPH_H_

namespace at::cuda {

struct CUDAGraph {
  ~CUDAGraph();
  void capture_begin();
  void capture_end();
  void replay() {}
};

}  // namespace at::cuda

#endif  // DENOISED_TESTS_EMULATED_CUDA_INCLUDE_ATEN_CUDA_CUDAGRAPH_H_
