#include "backends/kernels/variants.h"

#include <initializer_list>

namespace denoised::kernels {
namespace {

bool HasAvx2(const DeviceInfo& cpu) { return cpu.avx2; }
bool HasAvx512(const DeviceInfo& cpu) { return cpu.avx512; }
bool HasBf16(const DeviceInfo& cpu) { return cpu.avx512_bf16; }
bool HasVnni(const DeviceInfo& cpu) { return cpu.avx512_vnni; }
bool HasVnniBf16(const DeviceInfo& cpu) { return cpu.avx512_vnni && cpu.avx512_bf16; }
bool HasAmx(const DeviceInfo& cpu) { return HasVnniBf16(cpu) && cpu.amx_bf16 && cpu.amx_int8; }

constexpr Variant kVariants[] = {
    // clang-format off
    {Isa::kAvx2,         "AVX2",                   TileAvx2,         HasAvx2,     false, false, Scores::kExact},
    {Isa::kAvx512,       "AVX-512",                TileAvx512,       HasAvx512,   false, false, Scores::kExact},
    {Isa::kAvx512Bf16,   "AVX-512 BF16",           TileAvx512Bf16,   HasBf16,     true,  false, Scores::kExact},
    {Isa::kAmxBf16,      "AMX BF16",               TileAmxBf16,      HasAmx,      true,  true,  Scores::kExact},
    {Isa::kAvx2Int8,     "AVX2 INT8",              TileAvx2Int8,     HasAvx2,     false, false, Scores::kWords},
    {Isa::kAvx512Int8,   "AVX-512 INT8",           TileAvx512Int8,   HasAvx512,   false, false, Scores::kWords},
    {Isa::kVnniInt8,     "AVX-512 VNNI INT8",      TileVnniInt8,     HasVnni,     false, false, Scores::kBytes},
    {Isa::kVnniBf16Int8, "AVX-512 VNNI BF16 INT8", TileVnniBf16Int8, HasVnniBf16, true,  false, Scores::kBytes},
    {Isa::kAmxInt8,      "AMX INT8",               TileAmxInt8,      HasAmx,      true,  true,  Scores::kBytes},
    // clang-format on
};

// The last of the candidates that the CPU has: they stand in rising order.
Isa LastOf(std::initializer_list<Isa> candidates, const DeviceInfo& cpu) {
  Isa best = *candidates.begin();
  for (Isa isa : candidates) {
    if (HasIsa(isa, cpu)) best = isa;
  }
  return best;
}

}  // namespace

const Variant& VariantOf(Isa isa) { return kVariants[static_cast<int>(isa)]; }

UnitFormat FormatOf(const Variant& variant, const BlockSparseCall& call) {
  UnitFormat format;
  format.element = call.element;
  format.head_size = static_cast<int>(call.head_size);
  format.pairs = variant.pairs;
  format.tiles = variant.tiles;
  format.scores = variant.scores;
  return format;
}

const char* IsaName(Isa isa) { return VariantOf(isa).name; }

bool IsInt8(Isa isa) { return VariantOf(isa).scores != Scores::kExact; }

bool HasIsa(Isa isa, const DeviceInfo& cpu) { return VariantOf(isa).has(cpu); }

Isa BestIsa(Element element, const DeviceInfo& cpu) {
  if (element == Element::kFloat32) return LastOf({Isa::kAvx2, Isa::kAvx512}, cpu);
  return LastOf({Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmxBf16}, cpu);
}

Isa Int8Isa(const DeviceInfo& cpu) {
  return LastOf(
      {Isa::kAvx2Int8, Isa::kAvx512Int8, Isa::kVnniInt8, Isa::kVnniBf16Int8, Isa::kAmxInt8}, cpu);
}

}  // namespace denoised::kernels
