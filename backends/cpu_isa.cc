#include "backends/cpu_isa.h"

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include "backends/error.h"

namespace denoised {
namespace {

// What a level is called by us and by the libraries.
struct Level {
  CpuIsa isa;
  const char* name;
  const char* aten;    // ATEN_CPU_CAPABILITY
  const char* onednn;  // ONEDNN_MAX_CPU_ISA
  const char* mkl;  // MKL_ENABLE_INSTRUCTIONS; its numbered steps are VNNI (1), BF16 (3), AMX (4)
};

constexpr std::array<Level, 5> kLevels = {{
    // clang-format off
    {CpuIsa::kAvx2,       "avx2",        "avx2",   "avx2",             "AVX2"},
    {CpuIsa::kAvx512,     "avx512",      "avx512", "avx512_core",      "AVX512"},
    {CpuIsa::kAvx512Vnni, "avx512_vnni", "avx512", "avx512_core_vnni", "AVX512_E1"},
    {CpuIsa::kAvx512Bf16, "avx512_bf16", "avx512", "avx512_core_bf16", "AVX512_E3"},
    {CpuIsa::kAmx,        "amx",         "avx512", "avx512_core_amx",  "AVX512_E4"},
    // clang-format on
}};

std::atomic<CpuIsa> g_pinned{CpuIsa::kAuto};  // kAuto: nothing is pinned

const Level& LevelOf(CpuIsa isa) {
  return *std::find_if(kLevels.begin(), kLevels.end(),
                       [&](const Level& l) { return l.isa == isa; });
}

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// LibTorch decides at its first look, which this may be.
std::string LibTorchCapability() { return Lower(at::get_cpu_capability()); }

void CheckAllowed(CpuIsa isa, const DeviceInfo& machine) {
  const CpuIsa best = BestCpuIsa(machine);
  if (isa <= best) return;
  throw InvalidField("cpu_isa", "wanted " + std::string(CpuIsaName(isa)) +
                                    "; this machine has at most " + std::string(CpuIsaName(best)) +
                                    " (" + machine.name + ")");
}

}  // namespace

const std::vector<std::string>& CpuIsaNames() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"auto"};
    for (const Level& level : kLevels) all.push_back(level.name);
    return all;
  }();
  return names;
}

std::string_view CpuIsaName(CpuIsa isa) {
  return isa == CpuIsa::kAuto ? "auto" : LevelOf(isa).name;
}

std::optional<CpuIsa> CpuIsaFromName(std::string_view name) {
  if (name == "auto") return CpuIsa::kAuto;
  for (const Level& level : kLevels) {
    if (name == level.name) return level.isa;
  }
  return std::nullopt;
}

CpuIsa BestCpuIsa(const DeviceInfo& cpu) {
  if (!cpu.avx512) return CpuIsa::kAvx2;
  if (!cpu.avx512_vnni) return CpuIsa::kAvx512;
  if (!cpu.avx512_bf16) return CpuIsa::kAvx512Vnni;
  return cpu.amx_bf16 && cpu.amx_int8 ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
}

CpuIsa FastestCpuIsa(const DeviceInfo& cpu) {
  const CpuIsa best = BestCpuIsa(cpu);
  return best == CpuIsa::kAvx512Bf16 && cpu.slow_bf16 ? CpuIsa::kAvx512Vnni : best;
}

DeviceInfo LimitCpu(DeviceInfo cpu, CpuIsa isa) {
  const CpuIsa best = BestCpuIsa(cpu);
  const CpuIsa level = isa == CpuIsa::kAuto ? FastestCpuIsa(cpu) : std::min(isa, best);
  cpu.avx512 = level >= CpuIsa::kAvx512;
  cpu.avx512_vnni = level >= CpuIsa::kAvx512Vnni;
  cpu.avx512_bf16 = level >= CpuIsa::kAvx512Bf16;
  cpu.slow_bf16 = cpu.slow_bf16 && cpu.avx512_bf16;
  cpu.amx_bf16 = cpu.amx_int8 = level >= CpuIsa::kAmx;
  return cpu;
}

DeviceInfo QueryCpu() { return LimitCpu(QueryMachine(), g_pinned.load()); }

void PinCpuIsa(CpuIsa isa) {
  const DeviceInfo machine = QueryMachine();
  CheckAllowed(isa, machine);
  if (isa == CpuIsa::kAuto) isa = FastestCpuIsa(machine);
  CpuIsa before = CpuIsa::kAuto;
  if (!g_pinned.compare_exchange_strong(before, isa)) {
    if (before == isa) return;
    throw Error(StatusCode::kFailedPrecondition,
                "cpu_isa: " + std::string(CpuIsaName(before)) + " is pinned already; wanted " +
                    std::string(CpuIsaName(isa)),
                "cpu_isa");
  }
  const Level& level = LevelOf(isa);
  // What else would change their arithmetic behind the receipt's back.
  for (const char* name : {"MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE",
                           "ONEDNN_MAX_CPU_ISA_HINTS", "DNNL_MAX_CPU_ISA"}) {
    unsetenv(name);
  }
  setenv("ATEN_CPU_CAPABILITY", level.aten, /*overwrite=*/1);
  setenv("ONEDNN_MAX_CPU_ISA", level.onednn, 1);
  setenv("MKL_ENABLE_INSTRUCTIONS", level.mkl, 1);
  // With AVX2 alone MKL's sums depend on where in memory its operands lie, unless it is told not
  // to.
  if (isa == CpuIsa::kAvx2 && IsIntel()) setenv("MKL_CBWR", "AVX2,STRICT", 1);
  if (LibTorchCapability() != level.aten) {
    throw Error(StatusCode::kFailedPrecondition,
                "cpu_isa: wanted " + std::string(level.aten) + " of LibTorch, which runs " +
                    LibTorchCapability() + " already",
                "cpu_isa");
  }
}

CpuIsa CurrentCpuIsa() {
  const CpuIsa pinned = g_pinned.load();
  return pinned != CpuIsa::kAuto ? pinned : FastestCpuIsa(QueryMachine());
}

std::string KernelIdentity() {
  const Level& level = LevelOf(CurrentCpuIsa());
  const std::string mkl = IsIntel() ? Lower(level.mkl) : "not_intel";
  return "own=" + std::string(level.name) + " libtorch=" TORCH_VERSION "/" + LibTorchCapability() +
         " onednn=" + level.onednn + " mkl=" + mkl;
}

}  // namespace denoised
