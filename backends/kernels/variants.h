// The table of instruction sets: what each is called, runs and needs, and how its units are packed.
#ifndef DENOISED_BACKENDS_KERNELS_VARIANTS_H_
#define DENOISED_BACKENDS_KERNELS_VARIANTS_H_

#include "backends/kernels/block_sparse.h"
#include "backends/kernels/pack.h"
#include "backends/kernels/tile.h"

namespace denoised::kernels {

struct Variant {
  Isa isa;
  const char* name;
  TileKernel kernel;
  bool (*has)(const DeviceInfo& cpu);
  bool pairs;  // values are pairs of bfloat16
  bool tiles;
  Scores scores;
};

const Variant& VariantOf(Isa isa);

UnitFormat FormatOf(const Variant& variant, const BlockSparseCall& call);

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_VARIANTS_H_
