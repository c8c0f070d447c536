// What this machine's CPU offers to the kernels. Every flag means "instructions exist *and* the
// operating system saves their registers", so that a kernel chosen by it cannot fault.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "backends/cpu_isa.h"

namespace denoised {
namespace {

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf Cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidLeaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

// XCR0: the register states that the operating system saves.
uint64_t EnabledStates() {
  if (!Bit(Cpuid(1).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out AMX tile registers on request only; the permission covers all threads made after.
bool RequestAmxPermission() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

std::string CpuName() {
  char brand[49] = {};
  if (Cpuid(0x80000000u).eax < 0x80000004u) return "x86-64 CPU";
  for (uint32_t i = 0; i < 3; ++i) {
    const CpuidLeaf part = Cpuid(0x80000002u + i);
    std::memcpy(brand + 16 * i, &part, 16);
  }
  std::string name(brand);
  while (!name.empty() && name.back() == ' ') name.pop_back();
  return name;
}

bool ReadIsIntel() {
  const CpuidLeaf leaf0 = Cpuid(0);
  char maker[12];
  std::memcpy(maker, &leaf0.ebx, 4);
  std::memcpy(maker + 4, &leaf0.edx, 4);
  std::memcpy(maker + 8, &leaf0.ecx, 4);
  return std::memcmp(maker, "GenuineIntel", sizeof(maker)) == 0;
}

// Of vdpbf16ps Intel's cores since Golden Cove do a quarter as many a second as of float32's
// multiply-adds, half the products: measured on Emerald Rapids and Sapphire Rapids
// (backends/README.md), and so it is reported in libxsmm/tpp-mlir's pull request 1025. Cooper
// Lake, the one before them, does twice the products by Intel's account, as AMD's cores do.
bool MultipliesBf16Slowly(uint32_t signature) {
  const uint32_t family = (signature >> 8) & 0xfu;
  const uint32_t model = ((signature >> 4) & 0xfu) | ((signature >> 12) & 0xf0u);
  const bool cooper_lake = family == 6 && model == 0x55;
  return IsIntel() && !cooper_lake;
}

DeviceInfo ReadMachine() {
  constexpr uint64_t kAvxStates = 0x6, kAvx512States = 0xe6, kTileStates = 0x60000;
  const uint64_t states = EnabledStates();
  const CpuidLeaf leaf1 = Cpuid(1), leaf7 = Cpuid(7, 0), leaf7_1 = Cpuid(7, 1);
  const bool avx = (states & kAvxStates) == kAvxStates;
  const bool avx512 = (states & kAvx512States) == kAvx512States;

  DeviceInfo info;
  info.name = CpuName();
  info.avx2 = avx && Bit(leaf7.ebx, 5) && Bit(leaf1.ecx, 12);  // AVX2 and FMA
  info.avx512 = avx512 && Bit(leaf7.ebx, 16) && Bit(leaf7.ebx, 17) && Bit(leaf7.ebx, 30) &&
                Bit(leaf7.ebx, 31);  // F, DQ, BW, VL
  info.avx512_bf16 = info.avx512 && Bit(leaf7_1.eax, 5);
  info.avx512_vnni = info.avx512 && Bit(leaf7.ecx, 11);
  info.slow_bf16 = info.avx512_bf16 && MultipliesBf16Slowly(leaf1.eax);
  const bool tiles = (states & kTileStates) == kTileStates && Bit(leaf7.edx, 24);
  if (tiles && RequestAmxPermission()) {
    info.amx_bf16 = Bit(leaf7.edx, 22);
    info.amx_int8 = Bit(leaf7.edx, 25);
  }
  return info;
}

}  // namespace

// A virtual machine is slow to answer CPUID, and its answers do not change.
bool IsIntel() {
  static const bool intel = ReadIsIntel();
  return intel;
}

DeviceInfo QueryMachine() {
  static const DeviceInfo machine = ReadMachine();
  return machine;
}

}  // namespace denoised
