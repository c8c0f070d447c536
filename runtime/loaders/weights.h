// The tensors of one component folder: a single safetensors file or a sharded set with its index.
#ifndef DENOISED_RUNTIME_LOADERS_WEIGHTS_H_
#define DENOISED_RUNTIME_LOADERS_WEIGHTS_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "backends/kernels/gemm.h"
#include "runtime/loaders/model_folder.h"

namespace denoised {

// A tensor [rows, columns] that is still in its file, which stays open for it.
struct WeightRows {
  int64_t rows, columns;
  at::ScalarType dtype;
  kernels::RowReader read;  // in `dtype`
};

// Read-only; tensors are read and converted as they are taken (by pread, so that a file that is cut
// while open is an Error and not a SIGBUS). Every failure is an Error that names the file and the
// tensor. One thread, and the helpers that it has.
class Weights {
 public:
  // Opens the files that FindWeightFiles chooses. All headers are checked by the strict rules in
  // safetensors.h before this returns. An index that says something else than its shards is a
  // warning of the folder's where no tensor is lost by it. NOT_FOUND where there are no weights.
  static Weights Open(const ModelFolder& folder, const std::string& stem);
  ~Weights();
  Weights(Weights&&) noexcept;
  Weights& operator=(Weights&&) noexcept;

  bool Contains(const std::string& name) const;
  // Of all its tensors, in memory in this dtype.
  int64_t BytesAs(at::ScalarType dtype) const;

  // A copy of tensor `name` in `dtype` on `device`; has stop points. INVALID_ARGUMENT naming file,
  // tensor, the wanted and the found shape where it is missing or of another shape.
  at::Tensor Take(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype,
                  at::Device device = at::kCPU);
  // The same for who makes a form of its own of it. On the CPU; errors of reading come from `read`.
  WeightRows TakeRows(const std::string& name, int64_t rows, int64_t columns, at::ScalarType dtype);

  // Names in the files that were never taken, sorted.
  std::vector<std::string> Unused() const;

 private:
  struct Impl;
  explicit Weights(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_WEIGHTS_H_
