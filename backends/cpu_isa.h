// Which instructions this process may use on the CPU: one ordered scale, from what every x86-64-v3
// machine has up to AMX. A pin holds for our kernels, which choose by QueryCpu(), and for
// LibTorch's own, oneDNN's and MKL's, so that one machine can stand for lesser ones and two
// machines can be made to compute alike. Torch-free header.
#ifndef DENOISED_BACKENDS_CPU_ISA_H_
#define DENOISED_BACKENDS_CPU_ISA_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"

namespace denoised {

// Each has all that stand before it.
enum class CpuIsa : uint8_t {
  kAuto,        // the fastest that the machine has
  kAvx2,        // AVX2 and FMA: the floor
  kAvx512,      // AVX-512 F, DQ, BW and VL
  kAvx512Vnni,  // products of bytes
  kAvx512Bf16,  // products of bfloat16
  kAmx,         // tiles of either
};

// "auto", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", in the enum's order.
const std::vector<std::string>& CpuIsaNames();
std::string_view CpuIsaName(CpuIsa isa);
std::optional<CpuIsa> CpuIsaFromName(std::string_view name);

// The highest level all of whose instructions `cpu` has.
CpuIsa BestCpuIsa(const DeviceInfo& cpu);

// The fastest: the highest, but kAvx512Vnni where that is kAvx512Bf16 and `cpu.slow_bf16`.
CpuIsa FastestCpuIsa(const DeviceInfo& cpu);

// `cpu` without what lies above `isa`; kAuto leaves what its fastest level has.
DeviceInfo LimitCpu(DeviceInfo cpu, CpuIsa isa);

// What the machine has, whatever is pinned (device_info.cc). QueryCpu() is this under the pin.
DeviceInfo QueryMachine();

// Whether Intel made this CPU. MKL heeds its limit on Intel's processors only; on all others it has
// one path, for AVX2.
bool IsIntel();

// Holds for the whole process and cannot be taken back. Called by main() before the first thread
// and the first LibTorch call: the libraries read their limits once, from the environment, which
// this sets: ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS from outside count
// for nothing, and MKL_CBWR and oneDNN's math modes are taken away (on Intel kAvx2 sets MKL_CBWR to
// its strict mode). kAuto pins the machine's fastest.
//
// Throws INVALID_ARGUMENT where the machine lacks `isa`, naming its best; FAILED_PRECONDITION where
// LibTorch has made its choice already, or another level is pinned.
void PinCpuIsa(CpuIsa isa);

// The level that holds: the pinned one, else the machine's fastest. Never kAuto.
CpuIsa CurrentCpuIsa();

// Which kernels this process runs on the CPU, for receipts and fingerprints: our own level,
// LibTorch's version and capability, oneDNN's and MKL's limits. Equal texts mean equal code paths.
// Makes LibTorch choose.
std::string KernelIdentity();

}  // namespace denoised

#endif  // DENOISED_BACKENDS_CPU_ISA_H_
