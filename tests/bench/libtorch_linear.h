// A linear layer as LibTorch does it best on this CPU: the peer of our packed product.
#ifndef DENOISED_TESTS_BENCH_LIBTORCH_LINEAR_H_
#define DENOISED_TESTS_BENCH_LIBTORCH_LINEAR_H_

#include <ATen/ATen.h>

namespace denoised {

// at::linear (MKL in float32, oneDNN in bfloat16), or, with instructions for bfloat16, oneDNN with
// weights that lie in blocks before the call: whichever was faster for such rows.
class LibTorchLinear {
 public:
  // Tries both over `x` [rows, in]; `bias` may be undefined.
  LibTorchLinear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

  // On LibTorch's threads.
  at::Tensor operator()(const at::Tensor& x) const;

  const char* form() const { return blocked_.defined() ? "blocked" : "plain"; }

 private:
  const at::Tensor weight_, bias_;
  at::Tensor blocked_;  // undefined: weight_ as it is
};

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_LIBTORCH_LINEAR_H_
