// How much memory the process may take, and how much it holds. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_ENGINE_MEMORY_BUDGET_H_
#define DENOISED_RUNTIME_ENGINE_MEMORY_BUDGET_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace denoised {

// "1.5 GiB", "64 MiB": for messages.
std::string BytesText(int64_t bytes);

// Bytes of "8GiB", "1500MiB", "1.5 GB"; units B, K, M, G, T with iB (powers of 1,024), with B or
// alone (K = KiB, KB = 1,000). Empty where the text is no such size.
std::optional<int64_t> ParseBytes(const std::string& text);

// The memory of this machine and the limit of the control groups that this process is in, the
// nearest of all levels, versions 1 and 2; empty where there is none. `root` stands for "/" in
// tests. Read anew each time: a process can be moved, and a limit changed.
std::optional<int64_t> MachineMemory(const std::filesystem::path& root = "/");
std::optional<int64_t> CgroupMemoryLimit(const std::filesystem::path& root = "/");

// What this process holds in memory now (VmRSS); and without what the kernel can take back, as
// pages of files that are read again when they are needed (RssAnon).
int64_t ResidentBytes();
int64_t UnreclaimableBytes();

// What a limit of so many bytes keeps free: a sixteenth (64 MiB at least) for the kernel's tables
// and what a formula overlooks.
int64_t MemoryReserve(int64_t bytes);

class MemoryBudget {
 public:
  // `text` is --max_memory: "auto", a size, or "none" (also "0"). Throws INVALID_ARGUMENT, field
  // "max_memory".
  explicit MemoryBudget(const std::string& text, std::filesystem::path root = "/");

  struct Limit {
    int64_t bytes;
    std::string source;  // "--max_memory", "the container's limit of 1.5 GiB less a reserve", ...
  };
  // Empty: no limit. "auto" is the smaller of machine and control group, less MemoryReserve; a size
  // is taken as it is.
  std::optional<Limit> Now() const;

 private:
  enum class Kind : uint8_t { kAuto, kNone, kSize };

  const std::filesystem::path root_;
  Kind kind_ = Kind::kAuto;
  int64_t size_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MEMORY_BUDGET_H_
