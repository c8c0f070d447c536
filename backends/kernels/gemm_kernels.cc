#include "backends/kernels/gemm_kernels.h"

namespace denoised::kernels {
namespace {

bool HasAvx2(const DeviceInfo& /*cpu*/) { return true; }
bool HasAvx512(const DeviceInfo& cpu) { return cpu.avx512; }
bool HasBf16(const DeviceInfo& cpu) { return cpu.avx512 && cpu.avx512_bf16; }
bool HasVnni(const DeviceInfo& cpu) { return cpu.avx512 && cpu.avx512_vnni; }
bool HasAmx(const DeviceInfo& cpu) { return HasBf16(cpu) && cpu.amx_bf16 && cpu.amx_int8; }

constexpr GemmTileKernel kNone = {nullptr};
constexpr GemmTileKernel kAmxBf16 = {GemmTileAmxBf16, nullptr, BeginAmx, EndAmx};
constexpr GemmTileKernel kAmxInt8 = {GemmTileAmxInt8, nullptr, BeginAmx, EndAmx};

// In the enum's order.
constexpr GemmKernel kKernels[] = {
    // clang-format off
    {GemmIsa::kAvx2,       "avx2",        HasAvx2,   GemmUnits::kFloats, {GemmTileAvx2, LastGemmTileAvx2},             {GemmTileAvx2Widen, LastGemmTileAvx2Widen},     FinishAvx2},
    {GemmIsa::kAvx512,     "avx512",      HasAvx512, GemmUnits::kFloats, {GemmTileAvx512, LastGemmTileAvx512},         {GemmTileAvx512Widen, LastGemmTileAvx512Widen}, FinishAvx512},
    {GemmIsa::kAvx512Bf16, "avx512_bf16", HasBf16,   GemmUnits::kPairs,  {GemmTileAvx512Bf16, LastGemmTileAvx512Bf16}, kNone,                                          FinishAvx512Bf16},
    {GemmIsa::kAmxBf16,    "amx_bf16",    HasAmx,    GemmUnits::kPairs,  kAmxBf16,                                     kNone,                                          FinishAvx512, true},
    {GemmIsa::kAvx2Int8,   "avx2_int8",   HasAvx2,   GemmUnits::kWords,  {GemmTileAvx2Int8},                           kNone,                                          FinishAvx2},
    {GemmIsa::kAvx512Int8, "avx512_int8", HasAvx512, GemmUnits::kWords,  {GemmTileAvx512Int8},                         kNone,                                          FinishAvx512},
    {GemmIsa::kVnniInt8,   "vnni_int8",   HasVnni,   GemmUnits::kBytes,  {GemmTileVnniInt8},                           kNone,                                          FinishAvx512},
    {GemmIsa::kAmxInt8,    "amx_int8",    HasAmx,    GemmUnits::kBytes,  kAmxInt8,                                     kNone,                                          FinishAvx512, true},
    // clang-format on
};

GemmIsa Widest(bool int8, Element element, const DeviceInfo& cpu, bool amx = true) {
  GemmIsa widest = int8 ? GemmIsa::kAvx2Int8 : GemmIsa::kAvx2;
  for (const GemmKernel& kernel : kKernels) {
    if (kernel.int8() != int8 || !kernel.has(cpu) || (kernel.amx && !amx)) continue;
    if (Takes(kernel.isa, element)) widest = kernel.isa;
  }
  return widest;
}

}  // namespace

const GemmKernel& KernelOf(GemmIsa isa) { return kKernels[static_cast<int>(isa)]; }

const char* GemmIsaName(GemmIsa isa) { return KernelOf(isa).name; }
bool IsInt8(GemmIsa isa) { return KernelOf(isa).int8(); }
bool HasGemmIsa(GemmIsa isa, const DeviceInfo& cpu) { return KernelOf(isa).has(cpu); }

bool Takes(GemmIsa isa, Element element) {
  return KernelOf(isa).units != GemmUnits::kPairs || element == Element::kBFloat16;
}

GemmIsa BestGemmIsa(Element element, const DeviceInfo& cpu) { return Widest(false, element, cpu); }

GemmIsa Int8GemmIsa(const DeviceInfo& cpu) { return Widest(true, Element::kFloat32, cpu); }

GemmIsa BestConvolutionIsa(Element element, const DeviceInfo& cpu) {
  return Widest(false, element, cpu, /*amx=*/false);
}

}  // namespace denoised::kernels
